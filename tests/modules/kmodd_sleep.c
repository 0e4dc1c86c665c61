// SPDX-License-Identifier: GPL-2.0
/*
 * kmodd_sleep: an init that takes `ms` milliseconds, uninterruptibly, as a slow device's does, and an exit
 * that takes `exit_ms`.
 */
#include <linux/delay.h>
#include <linux/module.h>

static unsigned int ms = 1000;
module_param(ms, uint, 0444);
MODULE_PARM_DESC(ms, "how long init sleeps, in milliseconds (default 1000)");

static unsigned int exit_ms;
module_param(exit_ms, uint, 0644);
MODULE_PARM_DESC(exit_ms, "how long exit sleeps, in milliseconds (default 0)");

static int __init kmodd_sleep_init(void)
{
	msleep(ms);
	return 0;
}

static void __exit kmodd_sleep_exit(void)
{
	msleep(exit_ms);
}

module_init(kmodd_sleep_init);
module_exit(kmodd_sleep_exit);
MODULE_DESCRIPTION("Test module: a slow init and exit");
MODULE_LICENSE("GPL");
