/*
 * Preloaded into User-mode Linux by `kmodd lab`, on x86-64: without it Debian 12's panics at its first process
 * on every processor with AVX-512, AMX or protection keys ("Attempted to kill init! exitcode=0x0000000b").
 *
 * Before Linux 6.13 User-mode Linux keeps 832 bytes of a process's vector registers (x87, SSE, AVX: struct
 * _xstate of arch/x86/um) and writes those back with PTRACE_SETREGSET, which takes nothing but the whole XSAVE
 * area (xstateregs_set() in arch/x86/kernel/fpu/regset.c: EFAULT), as large as the processor makes it.
 *
 * So what lies behind those bytes is kept here, for each buffer that they are read into; User-mode Linux has
 * one for each thread of its guest. A buffer that is written and was never read is a new thread's: what lies
 * behind it is then as it is after a reset. Where the area is no larger nothing is done.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

enum {
	WHOLE = 16384, /* bytes of the largest area: 11,008 with AMX */
	THREADS = 8192, /* a power of two; with more, the oldest ones of one place lose what is kept */
	PROBES = 16,
	HEADER = 512, /* of the XSAVE area: its first eight bytes say which states are in it */
};
#define KNOWN 7ULL /* x87, SSE, AVX: what the 832 bytes hold */

struct kept {
	const void *buffer;
	size_t size;
	unsigned char whole[WHOLE];
};

static struct kept *table; /* touched only as far as it is used */

static long pass_on(int request, pid_t pid, void *address, void *data)
{
	static __typeof__(&ptrace) next;

	if (!next)
		next = (__typeof__(&ptrace))dlsym(RTLD_NEXT, "ptrace");
	return next(request, pid, address, data);
}

/* The place of a buffer; with `make` one is made, over another's where all are taken. */
static struct kept *place_of(const void *buffer, int make)
{
	uintptr_t hash = ((uintptr_t)buffer >> 6) * 0x9e3779b97f4a7c15u >> 32;
	struct kept *free_one = NULL;

	if (!table) {
		void *mapped = mmap(NULL, THREADS * sizeof(*table), PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (mapped == MAP_FAILED)
			return NULL;
		table = mapped;
	}
	for (unsigned i = 0; i < PROBES; i++) {
		struct kept *place = &table[(hash + i) % THREADS];
		if (place->buffer == buffer)
			return place;
		if (!place->buffer && !free_one)
			free_one = place;
	}
	if (!make)
		return NULL;
	if (!free_one)
		free_one = &table[hash % THREADS];
	free_one->buffer = buffer;
	return free_one;
}

static long get_state(pid_t pid, void *address, struct iovec *wanted)
{
	struct kept *place = place_of(wanted->iov_base, 1);

	if (!place)
		return pass_on(PTRACE_GETREGSET, pid, address, wanted);
	struct iovec all = { place->whole, WHOLE };
	if (pass_on(PTRACE_GETREGSET, pid, address, &all) == -1)
		return -1;
	place->size = all.iov_len;
	if (wanted->iov_len > all.iov_len)
		wanted->iov_len = all.iov_len;
	memcpy(wanted->iov_base, place->whole, wanted->iov_len);
	return 0;
}

static long set_state(pid_t pid, void *address, struct iovec *given)
{
	static unsigned char whole[WHOLE] __attribute__((aligned(64)));
	struct iovec all = { whole, WHOLE };
	const struct kept *place = place_of(given->iov_base, 0);
	uint64_t states;

	if (place) {
		all.iov_len = place->size;
		memcpy(whole, place->whole, place->size);
	} else if (pass_on(PTRACE_GETREGSET, pid, address, &all) == -1) {
		return -1;
	}
	if (given->iov_len >= all.iov_len || given->iov_len < HEADER + sizeof(states))
		return pass_on(PTRACE_SETREGSET, pid, address, given);
	memcpy(whole, given->iov_base, given->iov_len);
	if (!place) {
		memcpy(&states, whole + HEADER, sizeof(states));
		states &= KNOWN;
		memcpy(whole + HEADER, &states, sizeof(states));
	}
	return pass_on(PTRACE_SETREGSET, pid, address, &all);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list list;

	va_start(list, request);
	pid_t pid = va_arg(list, pid_t);
	void *address = va_arg(list, void *);
	void *data = va_arg(list, void *);
	va_end(list);
	if (address == (void *)NT_X86_XSTATE && request == PTRACE_GETREGSET)
		return get_state(pid, address, data);
	if (address == (void *)NT_X86_XSTATE && request == PTRACE_SETREGSET)
		return set_state(pid, address, data);
	return pass_on(request, pid, address, data);
}
