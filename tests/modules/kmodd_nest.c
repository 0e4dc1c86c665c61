// SPDX-License-Identifier: GPL-2.0
/*
 * kmodd_nest_0 … kmodd_nest_20: each module's init asks for the next one.
 *
 * Loading kmodd_nest_0 nests 20 requests: every loader in the chain waits in its own
 * finit_module() until the innermost one is done, so a loader with fewer than 21 slots deadlocks.
 *
 * Built once per level with KMODD_NEST_LEVEL and KMODD_NEST_LAST set by Kbuild.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/errno.h>
#include <linux/kmod.h>
#include <linux/module.h>

static int result = -EINPROGRESS;
module_param(result, int, 0444);
MODULE_PARM_DESC(result, "what the nested request_module() returned (-EINPROGRESS until then)");

static unsigned int fail;
module_param(fail, uint, 0444);
MODULE_PARM_DESC(fail, "errno to fail with once the nested request is done, 0 for none");

static int __init kmodd_nest_init(void)
{
	if (fail > MAX_ERRNO)
		return -EINVAL;
	if (KMODD_NEST_LEVEL < KMODD_NEST_LAST)
		result = request_module("kmodd_nest_%d", KMODD_NEST_LEVEL + 1);
	else
		result = 0;
	pr_info("result %d\n", result);
	if (result < 0)
		return result;
	/* A helper's wait status: not an errno, and init may not return a positive number. */
	if (result > 0)
		return -ENXIO;
	return -(int)fail;
}

static void __exit kmodd_nest_exit(void)
{
}

module_init(kmodd_nest_init);
module_exit(kmodd_nest_exit);
MODULE_DESCRIPTION("Test module: one link of a chain of nested module requests");
MODULE_LICENSE("GPL");
