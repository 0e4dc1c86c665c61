// SPDX-License-Identifier: GPL-2.0
/*
 * kmodd_fail: init fails with -errno.
 *
 * An `errno` outside 1 … 4095 is refused while the parameters are parsed: EINVAL as well, but
 * then the kernel log names the parameter.
 */
#include <linux/errno.h>
#include <linux/module.h>
#include <linux/moduleparam.h>

static unsigned int fail_errno = ENODEV;

static int fail_errno_set(const char *value, const struct kernel_param *kp)
{
	return param_set_uint_minmax(value, kp, 1, MAX_ERRNO);
}

static const struct kernel_param_ops fail_errno_ops = {
	.set = fail_errno_set,
	.get = param_get_uint,
};

module_param_cb(errno, &fail_errno_ops, &fail_errno, 0444);
__MODULE_PARM_TYPE(errno, "uint");
MODULE_PARM_DESC(errno, "the errno that init fails with, 1 to 4095 (default 19, ENODEV)");

static int __init kmodd_fail_init(void)
{
	return -(int)fail_errno;
}

static void __exit kmodd_fail_exit(void)
{
}

module_init(kmodd_fail_init);
module_exit(kmodd_fail_exit);
MODULE_DESCRIPTION("Test module: an init that fails");
MODULE_LICENSE("GPL");
