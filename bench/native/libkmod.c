/*
 * libkmod TREE: load the index of a directory of modules, as modprobe does, and print the nanoseconds that
 * took and the kilobytes of memory it is in. Then for each line of standard input, `lookup N` or `plan N`,
 * read N names, resolve all of them, and print the nanoseconds of that and how many modules were found.
 *
 * `lookup`: the modules a name stands for. `plan`: what modprobe would do for them, with dependencies, soft
 * dependencies and options (`modprobe --dry-run`, whatever is live).
 *
 * No header of libkmod's: its shared library is on each machine, the rest is not.
 */
#define _GNU_SOURCE
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct kmod_ctx;
struct kmod_list;
struct kmod_module;

struct kmod_ctx *kmod_new(const char *directory, const char *const *configurations);
int kmod_load_resources(struct kmod_ctx *);
void kmod_set_log_priority(struct kmod_ctx *, int);
int kmod_module_new_from_lookup(struct kmod_ctx *, const char *, struct kmod_list **);
struct kmod_list *kmod_list_next(const struct kmod_list *, const struct kmod_list *);
struct kmod_module *kmod_module_get_module(const struct kmod_list *);
struct kmod_module *kmod_module_unref(struct kmod_module *);
int kmod_module_unref_list(struct kmod_list *);
int kmod_module_probe_insert_module(struct kmod_module *, unsigned, const char *, void *, const void *, void *);

#define IGNORE_LOADED 0x08
#define DRY_RUN 0x10

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long resident(void)
{
	char line[256];
	long found = 0;
	FILE *file = fopen("/proc/self/status", "r");

	while (file && fgets(line, sizeof(line), file))
		sscanf(line, "VmRSS: %ld", &found);
	if (file)
		fclose(file);
	return found;
}

int main(int argc, char **argv)
{
	char *line = NULL, work[16];
	size_t size = 0;
	int count;
	long before = resident();
	long long begin = now();
	struct kmod_ctx *kmod = argc == 2 ? kmod_new(argv[1], NULL) : NULL;

	if (!kmod || kmod_load_resources(kmod) < 0)
		errx(2, "libkmod cannot load the index");
	begin = now() - begin;
	kmod_set_log_priority(kmod, 0);
	printf("%lld %ld\n", begin, resident() - before);
	fflush(stdout);
	while (getline(&line, &size, stdin) > 0 && sscanf(line, "%15s %d", work, &count) == 2) {
		char **names = calloc(count, sizeof(*names));
		long found = 0;

		for (int i = 0; i < count && getline(&line, &size, stdin) > 0; i++) {
			line[strcspn(line, "\n")] = 0;
			names[i] = strdup(line);
		}
		begin = now();
		for (int i = 0; i < count; i++) {
			struct kmod_list *list = NULL, *each;

			kmod_module_new_from_lookup(kmod, names[i], &list);
			for (each = list; each; each = kmod_list_next(list, each)) {
				struct kmod_module *module = kmod_module_get_module(each);

				found++;
				if (work[0] == 'p')
					kmod_module_probe_insert_module(module, DRY_RUN | IGNORE_LOADED, NULL,
									NULL, NULL, NULL);
				kmod_module_unref(module);
			}
			kmod_module_unref_list(list);
		}
		begin = now() - begin;
		printf("%lld %ld\n", begin, found);
		fflush(stdout);
		for (int i = 0; i < count; i++)
			free(names[i]);
		free(names);
	}
	return 0;
}
