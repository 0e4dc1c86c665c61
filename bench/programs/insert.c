/*
 * The least that can load modules: hands the files in a list to the kernel, in order, and knows
 * nothing of names, dependencies or what is live. As kernel.modprobe it takes the list that it was
 * built with, else that in a file, a path a line.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int insert(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	long result = fd < 0 ? -1 : syscall(SYS_finit_module, fd, "", 0);

	if (fd >= 0)
		close(fd);
	return result != 0;
}

int main(int argc, char **argv)
{
	int failed = 0;
#ifdef PATHS
	static const char *const paths[] = { PATHS };

	(void)argc, (void)argv;
	for (unsigned i = 0; i < sizeof(paths) / sizeof(*paths); i++)
		failed |= insert(paths[i]);
#else
	char line[4096];
	FILE *list = argc == 2 ? fopen(argv[1], "r") : NULL;

	if (list == NULL)
		return 2;
	while (fgets(line, sizeof(line), list) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		failed |= insert(line);
	}
#endif
	return failed;
}
