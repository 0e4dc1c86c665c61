/*
 * kmodd-helper: what kernel.modprobe names. The kernel executes it for every request_module() as
 * "PATH -q -- NAME" with uid 0, init's root directory and no open files; it passes NAME to kmodd
 * and answers with its exit status, 0 or 1 (any other number is taken for a broken helper).
 *
 * One SOCK_SEQPACKET connection: NAME with its final NUL goes out in one packet; back comes "a"
 * (accepted: wait on, for ever), "s" and one byte of status (0 is success), or "f" (fall back).
 *
 * THE FALLBACK. No socket, a full backlog, no answer within 1 s, "f", anything malformed, an error
 * or end of file, also after "a": the program behind the symbolic link KMODD_FALLBACK is executed
 * as "/sbin/modprobe -q -- NAME", with the same environment and fds 0 to 2 on /dev/null.
 *   - The directory or the link does not exist: kmodd was never set up, KMODD_MODPROBE is executed.
 *   - The link's target cannot be executed: exit 1. So does fallback = "deny" refuse.
 *   - The directory is not root's alone, or the link not root's: exit 1, since what the
 *     administrator chose is not known. No one but root can bring that about in root's /run.
 *   - The program is this one again: exit 1, not a loop.
 * Checking first and executing then is no race for an unprivileged user: init's root directory and
 * mounts are used, and every directory on the way is writable by root only.
 *
 * With KMODD_LEAN (x86-64, arm64) nothing of libc is in it: starting libc costs more than all
 * that happens here (README.md). Elsewhere the same source makes an ordinary static program.
 */
#undef _GNU_SOURCE
#define _GNU_SOURCE
#ifndef KMODD_DIRECTORY
#define KMODD_DIRECTORY "/run/kmodd"
#endif
#ifndef KMODD_MODPROBE
#define KMODD_MODPROBE "/sbin/modprobe"
#endif
#define KMODD_FALLBACK KMODD_DIRECTORY "/fallback"
#include <stddef.h>
#include <stdint.h>

#ifdef KMODD_LEAN
/* The kernel's interface, the same on both architectures; cross compilers come without headers. */
enum { AF_UNIX = 1, SOCK_SEQPACKET = 5, SOCK_NONBLOCK = 04000, SOCK_CLOEXEC = 02000000 };
enum { MSG_NOSIGNAL = 0x4000, POLLIN = 1, O_RDWR = 2, AT_FDCWD = -100, AT_SYMLINK_NOFOLLOW = 256 };
enum { ENOENT = 2, EINTR = 4, EAGAIN = 11, S_IFMT = 0170000, S_IFDIR = 0040000, S_IFLNK = 0120000 };
enum { STATX_TYPE = 1, STATX_MODE = 2, STATX_UID = 8, AT_EXECFN = 31 };
struct sockaddr_un { uint16_t sun_family; char sun_path[108]; };
struct pollfd { int fd; short events, revents; };
struct statx { uint32_t ahead[5], stx_uid, stx_gid; uint16_t stx_mode; uint64_t behind[28]; };
_Static_assert(sizeof(long) == 8 && sizeof(struct statx) == 256, "not the kernel's layout");

static inline long call(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8),
			 "r"(r9) : "rcx", "r11", "memory");
	return number;
}
enum { SYS_close = 3, SYS_socket = 41, SYS_connect = 42, SYS_sendto = 44, SYS_recvfrom = 45 };
enum { SYS_execve = 59, SYS_openat = 257, SYS_ppoll = 271, SYS_statx = 332 };
__asm__(".globl _start\n_start: mov (%rsp), %rdi\n lea 8(%rsp), %rsi\n lea 16(%rsp,%rdi,8), %rdx\n"
	"and $-16, %rsp\n call main\n mov %eax, %edi\n mov $231, %eax\n syscall\n hlt");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c, x3 __asm__("x3") = d, x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc #0" : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
enum { SYS_openat = 56, SYS_close = 57, SYS_ppoll = 73, SYS_socket = 198 };
enum { SYS_connect = 203, SYS_sendto = 206, SYS_recvfrom = 207, SYS_execve = 221, SYS_statx = 291 };
__asm__(".globl _start\n_start: ldr x0, [sp]\n add x1, sp, #8\n add x2, x1, x0, lsl #3\n"
	"add x2, x2, #8\n bl main\n mov x8, #94\n svc #0\n brk #0");
#else
#error "KMODD_LEAN knows x86-64 and arm64: build with libc here"
#endif
#else
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static long call(long number, long a, long b, long c, long d, long e, long f)
{
	long result = syscall(number, a, b, c, d, e, f);
	return result < 0 ? -errno : result;
}
#endif
#ifndef SYS_ppoll_time64 /* 32-bit machines have it, for 64-bit seconds */
#define SYS_ppoll_time64 SYS_ppoll
#endif
/* A system call as in section 2 of the manual, except that an error comes back as -errno. */
#define PADDED(number, a, b, c, d, e, f, ...) \
	call(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define SYS(name, ...) PADDED(SYS_##name, __VA_ARGS__, 0, 0, 0, 0, 0, 0)

enum outcome { SUCCESS = 0, FAILURE = 1, FALL_BACK };
enum { LONGEST_NAME = 4096 };
/* Constant, so that it lies on the page of the code and nothing is copied to the stack. */
static const struct sockaddr_un address = { AF_UNIX, KMODD_DIRECTORY "/helper.sock" };

static enum outcome await_answer(int fd)
{
	/* The system call, unlike libc's ppoll(), leaves here what remains of it: one deadline,
	 * however often it is interrupted, and no need to ask for the time. */
	int64_t second[2] = { 1, 0 }, *left = second;
	struct pollfd polled = { fd, POLLIN, 0 };
	char packet[3]; /* one more than the longest answer, to see one that is too long */

	for (;;) {
		long result = SYS(ppoll_time64, &polled, 1, left, NULL);
		if (result == -EINTR)
			continue;
		if (result <= 0)
			return FALL_BACK;
		result = SYS(recvfrom, fd, packet, sizeof(packet), 0, NULL); /* data before EOF */
		if (result == -EINTR || result == -EAGAIN)
			continue;
		if (result == 2 && packet[0] == 's')
			return packet[1] == 0 ? SUCCESS : FAILURE;
		if (result != 1 || packet[0] != 'a' || left == NULL)
			return FALL_BACK;
		left = NULL;
	}
}

static enum outcome ask(const char *name)
{
	long size = 0, fd;
	enum outcome outcome = FALL_BACK;

	while (name[size++] != '\0') /* the NUL is sent as well: a packet is never empty */
		if (size > LONGEST_NAME) /* half of it would be another name; the kernel has < 64 */
			return FAILURE;
	fd = SYS(socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK);
	/* Neither sleeps, so neither is interrupted. EAGAIN: backlog full, the daemon hangs. */
	if (fd >= 0 && SYS(connect, fd, &address, sizeof(address)) == 0 &&
	    SYS(sendto, fd, name, size, MSG_NOSIGNAL, NULL) == size)
		outcome = await_answer((int)fd);
	if (fd >= 0 && outcome == FALL_BACK && SYS(close, fd) < 0) /* frees 0 for /dev/null */
		return FAILURE;
	return outcome;
}

/* 0: it is of that type and root's alone. -ENOENT: it does not exist. Else: not to be trusted. */
static long distrust(const char *path, unsigned type, unsigned forbidden)
{
	struct statx found;
	long result = SYS(statx, AT_FDCWD, path, AT_SYMLINK_NOFOLLOW,
			  STATX_TYPE | STATX_MODE | STATX_UID, &found);
	if (result == 0 && (found.stx_uid != 0 || (found.stx_mode & (S_IFMT | forbidden)) != type))
		return 1;
	return result;
}

static int is(const char *a, const char *b)
{
	while (*a == *b && *a != '\0')
		a++, b++;
	return *a == *b;
}

static void fall_back(char *name, char **envp)
{
	char *argv[] = { "/sbin/modprobe", "-q", "--", name, NULL }; /* kmod acts by argv[0] */
	const char *program = KMODD_FALLBACK;
	long result = distrust(KMODD_DIRECTORY, S_IFDIR, 022), fd;
	char **rest = envp;

	if (result == 0) /* a link's own mode means nothing */
		result = distrust(KMODD_FALLBACK, S_IFLNK, 0);
	if (result == -ENOENT)
		program = KMODD_MODPROBE;
	else if (result != 0)
		return;
	while (*rest++ != NULL)
		; /* behind the environment lie pairs of a type and a value, such as our own path */
	for (const uintptr_t *pair = (const uintptr_t *)rest; pair[0] != 0; pair += 2)
		if (pair[0] == AT_EXECFN && is((const char *)pair[1], program))
			return;
	do /* else the first file modprobe opens is its standard error; an open 0, 1 or 2 stays */
		fd = SYS(openat, AT_FDCWD, "/dev/null", O_RDWR);
	while (fd == 0 || fd == 1);
	if (fd > 2 && SYS(close, fd) < 0)
		return;
	SYS(execve, program, argv, envp); /* comes back only when it fails */
}

int main(int argc, char **argv, char **envp)
{
	char *name = argc < 4 || !is(argv[argc - 2], "--") ? NULL : argv[argc - 1];
	enum outcome outcome = name == NULL ? FAILURE : ask(name);

	if (outcome == FALL_BACK)
		fall_back(name, envp);
	return outcome == SUCCESS ? SUCCESS : FAILURE;
}
