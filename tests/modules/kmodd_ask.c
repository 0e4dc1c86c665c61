// SPDX-License-Identifier: GPL-2.0
/*
 * kmodd_ask: request_module() for user space, in the context of the task that writes.
 *
 * /proc/kmodd_ask: open it, write() a name, read() what request_module() returned, in decimal and
 * with a newline. The bytes go to the kernel as they are: nothing is stripped, an empty write asks
 * for the empty name, and a name of 56 bytes or more gets the kernel's own -ENAMETOOLONG. Only a
 * NUL (EINVAL) and more than 255 bytes (E2BIG) cannot be asked for. A read before the first write
 * is ENODATA. /proc/kmodd_ask_nowait is the same with request_module_nowait().
 *
 * The state belongs to the open file, so any number of tasks may ask at once; tasks that share one
 * open file take turns. Anyone may write, for the tests ask as an unprivileged user too.
 */
#include <linux/errno.h>
#include <linux/fs.h>
#include <linux/kmod.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

struct ask {
	struct mutex lock;
	int result;
	bool answered;
	char name[256];
};

static int ask_open(struct inode *inode, struct file *file)
{
	struct ask *ask = kzalloc(sizeof(*ask), GFP_KERNEL);

	if (!ask)
		return -ENOMEM;
	mutex_init(&ask->lock);
	file->private_data = ask;
	return 0;
}

static int ask_release(struct inode *inode, struct file *file)
{
	struct ask *ask = file->private_data;

	mutex_destroy(&ask->lock);
	kfree(ask);
	return 0;
}

static ssize_t ask_read(struct file *file, char __user *to, size_t count, loff_t *pos)
{
	struct ask *ask = file->private_data;
	char text[16];
	int len;

	if (mutex_lock_killable(&ask->lock))
		return -EINTR;
	len = ask->answered ? scnprintf(text, sizeof(text), "%d\n", ask->result) : -ENODATA;
	mutex_unlock(&ask->lock);
	if (len < 0)
		return len;
	return simple_read_from_buffer(to, count, pos, text, len);
}

static ssize_t ask_request(struct file *file, const char __user *from, size_t count, loff_t *pos,
			   bool wait)
{
	struct ask *ask = file->private_data;
	ssize_t err = count;

	if (count >= sizeof(ask->name))
		return -E2BIG;
	if (mutex_lock_killable(&ask->lock))
		return -EINTR;
	if (copy_from_user(ask->name, from, count)) {
		err = -EFAULT;
	} else if (memchr(ask->name, 0, count)) {
		err = -EINVAL;
	} else {
		ask->name[count] = 0;
		ask->result = wait ? request_module("%s", ask->name)
				   : request_module_nowait("%s", ask->name);
		ask->answered = true;
		*pos = 0;
	}
	mutex_unlock(&ask->lock);
	return err;
}

static ssize_t ask_write(struct file *file, const char __user *from, size_t count, loff_t *pos)
{
	return ask_request(file, from, count, pos, true);
}

static ssize_t ask_nowait_write(struct file *file, const char __user *from, size_t count,
				loff_t *pos)
{
	return ask_request(file, from, count, pos, false);
}

static const struct proc_ops ask_ops = {
	.proc_open = ask_open,
	.proc_release = ask_release,
	.proc_read = ask_read,
	.proc_write = ask_write,
	.proc_lseek = default_llseek,
};

static const struct proc_ops ask_nowait_ops = {
	.proc_open = ask_open,
	.proc_release = ask_release,
	.proc_read = ask_read,
	.proc_write = ask_nowait_write,
	.proc_lseek = default_llseek,
};

static int __init kmodd_ask_init(void)
{
	if (!proc_create("kmodd_ask", 0666, NULL, &ask_ops))
		return -ENOMEM;
	if (!proc_create("kmodd_ask_nowait", 0666, NULL, &ask_nowait_ops)) {
		remove_proc_entry("kmodd_ask", NULL);
		return -ENOMEM;
	}
	return 0;
}

static void __exit kmodd_ask_exit(void)
{
	remove_proc_entry("kmodd_ask_nowait", NULL);
	remove_proc_entry("kmodd_ask", NULL);
}

module_init(kmodd_ask_init);
module_exit(kmodd_ask_exit);
MODULE_DESCRIPTION("Test module: request_module() for user space");
MODULE_LICENSE("GPL");
