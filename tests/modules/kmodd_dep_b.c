// SPDX-License-Identifier: GPL-2.0
/* kmodd_dep_b: depends on kmodd_dep_a and, once live, holds it. */
#include <linux/errno.h>
#include <linux/module.h>

#include "kmodd_dep.h"

static int __init kmodd_dep_b_init(void)
{
	return kmodd_dep_a_value() == 42 ? 0 : -EINVAL;
}

static void __exit kmodd_dep_b_exit(void)
{
}

module_init(kmodd_dep_b_init);
module_exit(kmodd_dep_b_exit);
MODULE_DESCRIPTION("Test module: depends on kmodd_dep_a");
MODULE_LICENSE("GPL");
