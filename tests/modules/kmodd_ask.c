// SPDX-License-Identifier: GPL-2.0
/*
 * kmodd_ask: request_module() for user space, in the context of the task that writes.
 *
 * /proc/kmodd_ask: open it, write() a name, read() what request_module() returned, in decimal and
 * with a newline. The bytes go to the kernel as they are: nothing is stripped, an empty write asks
 * for the empty name, and a name of 56 bytes or more gets the kernel's own -ENAMETOOLONG. Only a
 * NUL (EINVAL) and more than 255 bytes (E2BIG) cannot be asked for. A read before the first write
 * is ENODATA. /proc/kmodd_ask_nowait is the same with request_module_nowait(). With /proc/kmodd_ask_worker
 * and /proc/kmodd_ask_worker_nowait a kernel thread asks, a worker, while the task that writes waits for it.
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
#include <linux/workqueue.h>

struct ask {
	struct mutex lock;
	int result;
	bool answered;
	bool wait;
	char name[256];
};

struct job {
	struct work_struct work;
	struct ask *ask;
};

static __always_inline void ask_now(struct ask *ask)
{
	ask->result = ask->wait ? request_module("%s", ask->name)
				: request_module_nowait("%s", ask->name);
}

static noinline void ask_worker(struct work_struct *work)
{
	ask_now(container_of(work, struct job, work)->ask);
}

static void ask_by_worker(struct ask *ask)
{
	struct job job = { .ask = ask };

	INIT_WORK_ONSTACK(&job.work, ask_worker);
	queue_work(system_unbound_wq, &job.work);
	flush_work(&job.work);
	destroy_work_on_stack(&job.work);
}

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

static noinline ssize_t ask_request(struct file *file, const char __user *from, size_t count, loff_t *pos,
			   bool wait, bool worker)
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
		ask->wait = wait;
		if (worker)
			ask_by_worker(ask);
		else
			ask_now(ask);
		ask->answered = true;
		*pos = 0;
	}
	mutex_unlock(&ask->lock);
	return err;
}

#define ASK_FILE(suffix, wait, worker)								\
	static ssize_t ask_write##suffix(struct file *file, const char __user *from, size_t count,	\
					 loff_t *pos)							\
	{												\
		return ask_request(file, from, count, pos, wait, worker);				\
	}												\
													\
	static const struct proc_ops ask_ops##suffix = {						\
		.proc_open = ask_open,									\
		.proc_release = ask_release,								\
		.proc_read = ask_read,									\
		.proc_write = ask_write##suffix,							\
		.proc_lseek = default_llseek,								\
	}

ASK_FILE(, true, false);
ASK_FILE(_nowait, false, false);
ASK_FILE(_worker, true, true);
ASK_FILE(_worker_nowait, false, true);

static const struct {
	const char *name;
	const struct proc_ops *ops;
} ask_files[] = {
	{ "kmodd_ask", &ask_ops },
	{ "kmodd_ask_nowait", &ask_ops_nowait },
	{ "kmodd_ask_worker", &ask_ops_worker },
	{ "kmodd_ask_worker_nowait", &ask_ops_worker_nowait },
};

static int __init kmodd_ask_init(void)
{
	int n;

	for (n = 0; n < ARRAY_SIZE(ask_files); n++) {
		if (!proc_create(ask_files[n].name, 0666, NULL, ask_files[n].ops)) {
			while (n--)
				remove_proc_entry(ask_files[n].name, NULL);
			return -ENOMEM;
		}
	}
	return 0;
}

static void __exit kmodd_ask_exit(void)
{
	int n;

	for (n = 0; n < ARRAY_SIZE(ask_files); n++)
		remove_proc_entry(ask_files[n].name, NULL);
}

module_init(kmodd_ask_init);
module_exit(kmodd_ask_exit);
MODULE_DESCRIPTION("Test module: request_module() for user space");
MODULE_LICENSE("GPL");
