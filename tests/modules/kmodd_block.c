// SPDX-License-Identifier: GPL-2.0
/*
 * kmodd_block, kmodd_block_0 … kmodd_block_7: init does not return until it is let go.
 *
 * Write 1 to /sys/module/NAME/parameters/open to let it go: the kernel makes a module's parameter
 * files before it calls init. The write may come before init waits; nothing is lost.
 *
 * The wait is killable, not interruptible: a signal that the loader handles or ignores must not end
 * it by accident, one that kills the loader must: init then fails with EINTR. With killable=0 not
 * even SIGKILL helps, as with a driver that hangs.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/errno.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/wait.h>

static DECLARE_WAIT_QUEUE_HEAD(gate);
static bool open;

static int open_set(const char *value, const struct kernel_param *kp)
{
	int err = param_set_bool(value, kp);

	wake_up_all(&gate);
	return err;
}

static const struct kernel_param_ops open_ops = {
	.flags = KERNEL_PARAM_OPS_FL_NOARG,
	.set = open_set,
	.get = param_get_bool,
};

module_param_cb(open, &open_ops, &open, 0644);
__MODULE_PARM_TYPE(open, "bool");
MODULE_PARM_DESC(open, "write 1 to let init return (default 0)");

static unsigned int fail;
module_param(fail, uint, 0644);
MODULE_PARM_DESC(fail, "errno that init returns once it is let go, 0 for success (default 0)");

static bool killable = true;
module_param(killable, bool, 0444);
MODULE_PARM_DESC(killable, "whether a deadly signal ends the wait (default 1)");

static int __init kmodd_block_init(void)
{
	pr_info("waiting\n");
	if (!killable)
		wait_event(gate, READ_ONCE(open));
	else if (wait_event_killable(gate, READ_ONCE(open)))
		return -EINTR;
	if (fail > MAX_ERRNO)
		return -EINVAL;
	return -(int)fail;
}

static void __exit kmodd_block_exit(void)
{
}

module_init(kmodd_block_init);
module_exit(kmodd_block_exit);
MODULE_DESCRIPTION("Test module: an init that waits to be let go");
MODULE_LICENSE("GPL");
