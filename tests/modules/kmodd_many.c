// SPDX-License-Identifier: GPL-2.0
/*
 * kmodd_many_00 … kmodd_many_59: independent modules for storms of requests.
 *
 * Init sleeps for 20 ms, so that loads one after another (60 × 20 ms) and loads side by side are
 * told apart by the clock.
 */
#include <linux/delay.h>
#include <linux/module.h>

static int __init kmodd_many_init(void)
{
	msleep(20);
	return 0;
}

static void __exit kmodd_many_exit(void)
{
}

module_init(kmodd_many_init);
module_exit(kmodd_many_exit);
MODULE_DESCRIPTION("Test module: one of many");
MODULE_LICENSE("GPL");
