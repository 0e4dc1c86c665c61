/*
 * Preloaded into a tool: it sees FAKEROOT's /proc/modules, /proc/cmdline, /sys/module, /lib/modules and
 * modprobe.d, and its calls about modules are only written to standard error. FAKE_ERRNO: what they fail
 * with. FAKE_NO_FINIT: there is no finit_module(2). FAKE_KERNEL: they change /sys/module as a kernel does,
 * and fail as it does; of `NAME=ERRNO,NAME=ERRNO` in it these modules with that.
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
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static const char *moved(const char *path, char buffer[static 4096])
{
	static const char *const prefixes[] = { "/proc/modules",	   "/proc/cmdline",
						"/sys/module",		   "/lib/modules",
						"/etc/modprobe.d",	   "/run/modprobe.d",
						"/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d",
						"/lib/modprobe.d" };
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

/* A kernel: /sys/module of FAKEROOT is what it has */

static const char *in_sysfs(char buffer[static 4096], const char *module, const char *rest)
{
	snprintf(buffer, 4096, "%s/sys/module/%s%s", getenv("FAKEROOT"), module, rest);
	return buffer;
}

static void put(const char *module, const char *file, const char *text)
{
	char buffer[4096];
	int fd = REAL(open)(in_sysfs(buffer, module, file), O_WRONLY | O_CREAT | O_TRUNC, 0644);

	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		abort();
	close(fd);
}

static int refcount(const char *module, int change)
{
	char buffer[4096], text[32] = "";
	int fd = REAL(open)(in_sysfs(buffer, module, "/refcnt"), O_RDONLY), count;

	if (fd < 0)
		return 0;
	if (read(fd, text, sizeof(text) - 1) < 0)
		abort();
	close(fd);
	count = atoi(text) + change;
	if (change) {
		snprintf(text, sizeof(text), "%d\n", count);
		put(module, "/refcnt", text);
	}
	return count;
}

static int is_there(const char *module)
{
	char buffer[4096];

	return access(in_sysfs(buffer, module, ""), F_OK) == 0;
}

static int chosen_failure(const char *module)
{
	const char *place = getenv("FAKE_KERNEL");
	size_t length = strlen(module);

	for (; (place = strstr(place, module)); place += length)
		if (place[length] == '=')
			return atoi(place + length + 1);
	return 0;
}

/* The value of a key in .modinfo, found by its text. */
static const char *modinfo(const char *image, size_t size, const char *key)
{
	size_t length = strlen(key);

	for (size_t i = 1; i + length < size; i++)
		if (!image[i - 1] && !memcmp(image + i, key, length))
			return image + i + length;
	return "";
}

static void each_dependency(const char *module, const char *depends, int change)
{
	char list[4096], buffer[4096], link[300];

	snprintf(list, sizeof(list), "%s", depends);
	snprintf(link, sizeof(link), "/holders/%s", module);
	for (char *one = strtok(list, ","); one; one = strtok(NULL, ",")) {
		for (char *c = one; *c; c++)
			*c = *c == '-' ? '_' : *c;
		if (!is_there(one))
			continue;
		refcount(one, change);
		if (change > 0)
			(void)!symlink(module, in_sysfs(buffer, one, link));
		else
			unlink(in_sysfs(buffer, one, link));
	}
}

static int inserted(const char *module, const char *image, size_t size)
{
	char buffer[4096], text[4096];
	const char *depends = modinfo(image, size, "depends=");

	int failure = chosen_failure(module);
	if (!failure && is_there(module))
		failure = EEXIST;
	errno = failure;
	if (failure)
		return -1;
	mkdir(in_sysfs(buffer, module, ""), 0755);
	mkdir(in_sysfs(buffer, module, "/holders"), 0755);
	put(module, "/initstate", "live\n");
	put(module, "/refcnt", "0\n");
	snprintf(text, sizeof(text), "%s", depends);
	put(module, "/depends", text);
	each_dependency(module, depends, 1);
	return 0;
}

static int removed(const char *module, unsigned flags)
{
	static const char *const files[] = { "/initstate", "/refcnt", "/depends", "/holders", "" };
	char buffer[4096], depends[4096] = "";

	int failure = chosen_failure(module);
	if (!failure && !is_there(module))
		failure = ENOENT;
	if (!failure && refcount(module, 0) > 0 && !(flags & O_TRUNC))
		failure = EWOULDBLOCK;
	errno = failure;
	if (failure)
		return -1;
	int fd = REAL(open)(in_sysfs(buffer, module, "/depends"), O_RDONLY);
	if (fd >= 0 && read(fd, depends, sizeof(depends) - 1) < 0)
		abort();
	close(fd);
	each_dependency(module, depends, -1);
	for (unsigned i = 0; i < sizeof(files) / sizeof(*files); i++)
		if (remove(in_sysfs(buffer, module, files[i])))
			errno = 0;
	return 0;
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
	int result = told("delete_module", name, flags);

	return getenv("FAKE_KERNEL") ? removed(name, flags) : result;
}

int init_module(const unsigned char *image, unsigned long size, const char *parameters)
{
	unsigned long sum = size;

	for (unsigned long i = 0; i < size; i++)
		sum = sum * 31 + image[i];
	int result = told("init_module", parameters, sum);
	return getenv("FAKE_KERNEL") ? inserted(modinfo((const char *)image, size, "name="), (const char *)image, size)
				     : result;
}

static int finit(int fd, const char *parameters, unsigned flags)
{
	int result = told("finit_module", parameters, flags);
	struct stat info;

	if (!getenv("FAKE_KERNEL"))
		return result;
	if (REAL(fstat)(fd, &info))
		return -1;
	char *image = mmap(NULL, info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	char link[64], path[4096], *module = path;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, sizeof(path) - 1);
	if (image == MAP_FAILED || length < 0)
		abort();
	path[length] = '\0';
	module = strrchr(path, '/') + 1;
	module[strcspn(module, ".")] = '\0';
	for (char *c = module; *c; c++)
		*c = *c == '-' ? '_' : *c;
	result = inserted(module, image, info.st_size);
	int number = errno;
	fprintf(stderr, "= %s: %d\n", module, result);
	munmap(image, info.st_size);
	errno = number;
	return result;
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
	return finit((int)words[0], (const char *)words[1], (unsigned)words[2]);
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
