/* The least that can be a helper: it exits, as one does that has not found a module. */
.globl _start
_start:
	mov $1, %edi
	mov $231, %eax /* exit_group */
	syscall
