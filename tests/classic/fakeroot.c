/*
 * Preloaded into a tool: it sees FAKEROOT's /proc/modules, /sys/module and /lib/modules, and its calls
 * about modules are only written to standard error. FAKE_ERRNO: what they fail with. FAKE_NO_FINIT: there
 * is no finit_module(2).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static const char *moved(const char *path, char buffer[static 4096])
{
	static const char *const prefixes[] = { "/proc/modules", "/sys/module", "/lib/modules" };
	const char *root = getenv("FAKEROOT");

	for (unsigned i = 0; root && i < sizeof(prefixes) / sizeof(*prefixes); i++) {
		if (strncmp(path, prefixes[i], strlen(prefixes[i])) == 0) {
			snprintf(buffer, 4096, "%s%s", root, path);
			return buffer;
		}
	}
	return path;
}

static int mode_of(int flags, va_list list)
{
	return flags & (O_CREAT | O_TMPFILE) ? va_arg(list, int) : 0;
}

#define OPEN(name)                                                                                     \
	int name(const char *path, int flags, ...)                                                     \
	{                                                                                              \
		char buffer[4096];                                                                     \
		va_list list;                                                                          \
		va_start(list, flags);                                                                 \
		int mode = mode_of(flags, list);                                                       \
		va_end(list);                                                                          \
		return REAL(name)(moved(path, buffer), flags, mode);                                   \
	}
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                   \
	int name(int at, const char *path, int flags, ...)                                             \
	{                                                                                              \
		char buffer[4096];                                                                     \
		va_list list;                                                                          \
		va_start(list, flags);                                                                 \
		int mode = mode_of(flags, list);                                                       \
		va_end(list);                                                                          \
		return REAL(name)(at, moved(path, buffer), flags, mode);                               \
	}
OPENAT(openat)
OPENAT(openat64)

FILE *fopen(const char *path, const char *mode)
{
	char buffer[4096];
	return REAL(fopen)(moved(path, buffer), mode);
}

DIR *opendir(const char *path)
{
	char buffer[4096];
	return REAL(opendir)(moved(path, buffer));
}

int stat(const char *path, struct stat *found)
{
	char buffer[4096];
	return REAL(stat)(moved(path, buffer), found);
}

int stat64(const char *path, struct stat64 *found)
{
	char buffer[4096];
	return REAL(stat64)(moved(path, buffer), found);
}

static int told(const char *what, const char *text, unsigned long number)
{
	const char *failure = getenv("FAKE_ERRNO");

	fprintf(stderr, "%s(%s, %#lx)\n", what, text, number);
	errno = failure ? atoi(failure) : 0;
	return errno ? -1 : 0;
}

int delete_module(const char *name, unsigned flags)
{
	return told("delete_module", name, flags);
}

int init_module(const unsigned char *image, unsigned long size, const char *parameters)
{
	unsigned long sum = size;

	while (size--)
		sum = sum * 31 + *image++;
	return told("init_module", parameters, sum);
}

long syscall(long number, ...)
{
	long words[6];
	va_list list;

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		words[i] = va_arg(list, long);
	va_end(list);
	if (number != SYS_finit_module)
		return REAL(syscall)(number, words[0], words[1], words[2], words[3], words[4], words[5]);
	if (getenv("FAKE_NO_FINIT")) {
		errno = ENOSYS;
		return -1;
	}
	return told("finit_module", (const char *)words[1], (unsigned)words[2]);
}

void openlog(const char *ident, int options, int facility)
{
	fprintf(stderr, "openlog(%s, %d, %d)\n", ident, options, facility);
}

static void logged(int priority, const char *format, va_list list)
{
	char text[4096];

	vsnprintf(text, sizeof(text), format, list);
	text[strcspn(text, "\n")] = '\0'; /* syslog(3) ends a line itself */
	fprintf(stderr, "syslog(%d, %s)\n", priority, text);
}

void syslog(int priority, const char *format, ...)
{
	va_list list;

	va_start(list, format);
	logged(priority, format, list);
	va_end(list);
}

void __syslog_chk(int priority, int flag, const char *format, ...)
{
	va_list list;

	(void)flag;
	va_start(list, format);
	logged(priority, format, list);
	va_end(list);
}
