// SPDX-License-Identifier: GPL-2.0
/*
 * kmodd_self asks for itself while it loads, kmodd_selfalias for an alias of itself.
 *
 * The stock modprobe hangs for ever on both: its finit_module() waits for the first one to leave
 * the state "coming", and the first one waits for modprobe.
 *
 * Built twice; Kbuild sets KMODD_SELF_ALIAS for the second one.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/errno.h>
#include <linux/kmod.h>
#include <linux/module.h>

#ifdef KMODD_SELF_ALIAS
#define KMODD_SELF_REQUEST "kmodd-self-alias"
MODULE_ALIAS("kmodd-self-alias");
#else
#define KMODD_SELF_REQUEST KBUILD_MODNAME
#endif

static int result = -EINPROGRESS;
module_param(result, int, 0444);
MODULE_PARM_DESC(result, "what request_module() returned (-EINPROGRESS until then)");

static int __init kmodd_self_init(void)
{
	result = request_module(KMODD_SELF_REQUEST);
	pr_info("result %d\n", result);
	return 0;
}

static void __exit kmodd_self_exit(void)
{
}

module_init(kmodd_self_init);
module_exit(kmodd_self_exit);
MODULE_DESCRIPTION("Test module: asks for itself while it loads");
MODULE_LICENSE("GPL");
