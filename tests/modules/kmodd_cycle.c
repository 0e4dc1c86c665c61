// SPDX-License-Identifier: GPL-2.0
/*
 * kmodd_cycle_a and kmodd_cycle_b: each one's init asks for the other.
 *
 * Whichever is loaded first, its request makes the other load, whose request comes back to the
 * first while that is still "coming". Both then succeed; `result` keeps what each was told.
 *
 * Built twice; Kbuild sets KMODD_CYCLE_OTHER, the name of the other one.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/errno.h>
#include <linux/kmod.h>
#include <linux/module.h>

static int result = -EINPROGRESS;
module_param(result, int, 0444);
MODULE_PARM_DESC(result, "what request_module() returned (-EINPROGRESS until then)");

static int __init kmodd_cycle_init(void)
{
	result = request_module(KMODD_CYCLE_OTHER);
	pr_info("result %d\n", result);
	return 0;
}

static void __exit kmodd_cycle_exit(void)
{
}

module_init(kmodd_cycle_init);
module_exit(kmodd_cycle_exit);
MODULE_DESCRIPTION("Test module: one half of a cycle of requests");
MODULE_LICENSE("GPL");
