// SPDX-License-Identifier: GPL-2.0
/* kmodd_dep_a: exports the symbol that kmodd_dep_b uses, so that kmodd_dep_b depends on it. */
#include <linux/module.h>

#include "kmodd_dep.h"

int kmodd_dep_a_value(void)
{
	return 42;
}
EXPORT_SYMBOL_GPL(kmodd_dep_a_value);

static int __init kmodd_dep_a_init(void)
{
	return 0;
}

static void __exit kmodd_dep_a_exit(void)
{
}

module_init(kmodd_dep_a_init);
module_exit(kmodd_dep_a_exit);
MODULE_DESCRIPTION("Test module: a dependency");
MODULE_LICENSE("GPL");
