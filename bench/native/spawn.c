/*
 * spawn COUNT AT_ONCE PROGRAM ARGUMENT...: start a program COUNT times, at most AT_ONCE at a time, as the
 * kernel starts its helper, and print nanoseconds: of all of them, then, where they run one at a time, of
 * each from before its start to its end.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char *environment[] = { "HOME=/", "TERM=linux", "PATH=/sbin:/usr/sbin:/bin:/usr/bin", NULL };

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void start(char **argv)
{
	pid_t pid = vfork();

	if (pid < 0)
		err(2, "vfork");
	if (!pid) {
		execve(argv[0], argv, environment);
		_exit(127);
	}
}

static void reap(void)
{
	int status;

	if (wait(&status) < 0)
		err(2, "wait");
	if (!WIFEXITED(status) || WEXITSTATUS(status) > 1)
		errx(2, "a program ended with status %#x", status);
}

int main(int argc, char **argv)
{
	int count = argc > 3 ? atoi(argv[1]) : 0, at_once = count ? atoi(argv[2]) : 0, running = 0;
	long long *took = calloc(count + 1, sizeof(*took)), begin;
	int quiet = open("/dev/null", O_RDWR), out = dup(1);

	if (!count || !at_once || !took || quiet < 0 || out < 0)
		errx(2, "usage: spawn COUNT AT_ONCE PROGRAM ARGUMENT...");
	dup2(quiet, 0);
	dup2(quiet, 1);
	fcntl(out, F_SETFD, FD_CLOEXEC);
	begin = now();
	for (int i = 0; i < count; i++) {
		long long one = now();

		start(argv + 3);
		if (++running == at_once) {
			reap();
			running--;
		}
		took[i] = now() - one;
	}
	while (running--)
		reap();
	begin = now() - begin;
	dprintf(out, "%lld\n", begin);
	for (int i = 0; at_once == 1 && i < count; i++)
		dprintf(out, "%lld\n", took[i]);
	return 0;
}
