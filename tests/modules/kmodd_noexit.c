// SPDX-License-Identifier: GPL-2.0
/* kmodd_noexit: has no module_exit(), so the kernel counts it as permanent and never unloads it. */
#include <linux/module.h>

static int __init kmodd_noexit_init(void)
{
	return 0;
}

module_init(kmodd_noexit_init);
MODULE_DESCRIPTION("Test module: cannot be unloaded");
MODULE_LICENSE("GPL");
