/*
 * Threads that hold each its own values in vector registers across system calls that let the others run.
 * Prints how large the registers were; ends with 1 where a thread found another one's.
 */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

enum { THREADS = 4, ROUNDS = 2000 };

static int size;
static int wrong;

/* The system call is in the same statement as the registers: no compiler comes between. */
#define ACROSS_YIELD(load, store, mine, found)                                                  \
	do {                                                                                    \
		long result = SYS_sched_yield;                                                  \
		__asm__ volatile(load "\n\tsyscall\n\t" store                                   \
				 : "+a"(result)                                                 \
				 : "r"(mine), "r"(found)                                        \
				 : "rcx", "r11", "memory", "xmm5");                             \
	} while (0)

static void *hold(void *argument)
{
	uint8_t mine[64], found[64];

	memset(mine, (int)(intptr_t)argument, sizeof(mine));
	for (int i = 0; i < ROUNDS; i++) {
		memset(found, 0, sizeof(found));
		if (size == 64)
			ACROSS_YIELD("vmovdqu64 (%1), %%zmm20", "vmovdqu64 %%zmm20, (%2)", mine, found);
		else if (size == 32)
			ACROSS_YIELD("vmovdqu (%1), %%ymm5", "vmovdqu %%ymm5, (%2)", mine, found);
		else
			ACROSS_YIELD("movdqu (%1), %%xmm5", "movdqu %%xmm5, (%2)", mine, found);
		if (memcmp(mine, found, size))
			__atomic_store_n(&wrong, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];

	size = __builtin_cpu_supports("avx512f") ? 64 : __builtin_cpu_supports("avx2") ? 32 : 16;
	for (intptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, hold, (void *)(i + 1)))
			return 2;
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	printf("%d bytes\n", size);
	return wrong;
}
