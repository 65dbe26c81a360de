// SPDX-License-Identifier: GPL-2.0-only
/*
 * The data fd of abi d: an anonymous file that carries the stream one way.
 * It belongs to one session; when the session is over every call on it
 * fails, though the user may keep the fd (or a dup of it) as long as he
 * likes. It keeps the device's memory, not the device, until then.
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include "bringup.h"

struct bring_file {
	struct bring_device *dev;
	struct file *filp;
	struct mutex lock;
	bool disabled;
	struct bring_saver *saver;
	struct bring_loader *loader;
	u8 page[PAGE_SIZE];	/* of a write */
};

/* What there is now, up to @count; -errno only if nothing was read. */
static ssize_t bring_save_some(struct bring_file *file, char __user *buf,
			       size_t count)
{
	bool loses = bring_bug(file->dev, BUG_D_FAULT_LOSES);
	size_t done = 0;

	while (done < count && !(done && signal_pending(current))) {
		const u8 *bytes;
		bool end;
		size_t n = bring_saver_peek(file->saver, &bytes, &end);
		bool over = end && !bring_bug(file->dev, BUG_D_NOMSG_AT_END);
		bool eof = over || bring_bug(file->dev, BUG_D_PRE_COPY_EOF);

		if (!n)
			return done ?: eof ? 0 : -ENOMSG;
		n = min(n, count - done);
		if (loses)
			bring_saver_took(file->saver, n);
		if (copy_to_user(buf + done, bytes, n))
			return done ?: -EFAULT;
		if (!loses)
			bring_saver_took(file->saver, n);
		done += n;
	}
	return done;
}

/* By fail_read= and gone_read=: the whole call, before anything is given. */
static int bring_read_fails(struct bring_file *file, size_t count)
{
	struct bring_saver *saver = file->saver;
	bool last = bring_saver_finished(saver) &&
		    bring_saver_rest(saver) <= count;

	return bring_fail_read(bring_saver_sent(saver),
			       bring_stream_size(file->dev), last);
}

static ssize_t bring_save_read(struct file *filp, char __user *buf,
			       size_t count, loff_t *pos)
{
	struct bring_file *file = filp->private_data;
	ssize_t ret;

	if (bring_odd(file->dev, ODD_ONE_BYTE_READS))
		count = min_t(size_t, count, 1);
	if (bring_bug(file->dev, BUG_D_ODD_READ))
		count &= ~7UL;
	mutex_lock(&file->lock);
	if (bring_gone())
		ret = -ENODEV;
	else if (!file->disabled)
		ret = bring_read_fails(file, count) ?:
		      bring_save_some(file, buf, count);
	else
		ret = bring_bug(file->dev, BUG_D_EOF_AFTER) ? 0 : -ENODEV;
	mutex_unlock(&file->lock);
	return ret;
}

static __poll_t bring_save_poll(struct file *filp, struct poll_table_struct *wait)
{
	struct bring_file *file = filp->private_data;
	__poll_t mask = 0;
	u64 initial, dirty;

	poll_wait(filp, &file->dev->wake, wait);
	mutex_lock(&file->lock);
	if (file->disabled) {
		mask = EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
	} else {
		bring_saver_left(file->saver, &initial, &dirty);
		if (bring_saver_finished(file->saver) ||
		    ((initial || dirty) &&
		     !bring_bug(file->dev, BUG_D_POLL_SILENT)))
			mask = EPOLLIN | EPOLLRDNORM;
	}
	mutex_unlock(&file->lock);
	return mask;
}

static long bring_save_ioctl(struct file *filp, unsigned int cmd,
			     unsigned long arg)
{
	unsigned long minsz = offsetofend(struct vfio_precopy_info, dirty_bytes);
	struct bring_file *file = filp->private_data;
	struct vfio_precopy_info info = {};
	long ret = 0;

	if (cmd != VFIO_MIG_GET_PRECOPY_INFO)
		return -ENOTTY;
	if (copy_from_user(&info, (void __user *)arg, minsz))
		return -EFAULT;
	if (info.argsz < minsz)
		return -EINVAL;
	info.flags = 0;
	mutex_lock(&file->lock);
	if (file->disabled || bring_gone())
		ret = -ENODEV;
	else if (bring_saver_finished(file->saver) &&
		 !bring_bug(file->dev, BUG_D_INFO_STOPPED))
		ret = -EINVAL;
	else
		bring_saver_left(file->saver, &info.initial_bytes,
				 &info.dirty_bytes);
	mutex_unlock(&file->lock);
	if (bring_bug(file->dev, BUG_D_INITIAL_STAYS))
		info.initial_bytes = max_t(u64, info.initial_bytes, PAGE_SIZE);
	if (!ret && copy_to_user((void __user *)arg, &info, minsz))
		ret = -EFAULT;
	return ret;
}

/* Page by page, so that one that is not there costs only itself. */
static ssize_t bring_load_some(struct bring_file *file, const char __user *buf,
			       size_t count)
{
	u64 all = bring_stream_size(file->dev);
	size_t done = 0;
	int ret = bring_fail_write(bring_loader_fed(file->loader), all, false);

	if (ret)
		return ret;
	while (done < count && !(done && signal_pending(current))) {
		size_t n = min_t(size_t, count - done,
				 PAGE_SIZE - offset_in_page(buf + done));

		if (copy_from_user(file->page, buf + done, n))
			return done ?: -EFAULT;
		ret = bring_loader_feed(file->loader, file->page, n);
		if (ret)
			return ret;
		done += n;
	}
	if (bring_loader_over(file->loader))
		ret = bring_fail_write(bring_loader_fed(file->loader), all,
				       true);
	return ret ?: done;
}

static ssize_t bring_load_write(struct file *filp, const char __user *buf,
				size_t count, loff_t *pos)
{
	struct bring_file *file = filp->private_data;
	ssize_t ret;

	if (bring_odd(file->dev, ODD_SHORT_WRITES))
		count = min_t(size_t, count, 1000);
	mutex_lock(&file->lock);
	ret = file->disabled || bring_gone() ?
	      -ENODEV : bring_load_some(file, buf, count);
	mutex_unlock(&file->lock);
	return ret;
}

static void bring_file_free(struct bring_file *file)
{
	struct device *device = &file->dev->vdev.device;

	if (!bring_bug(file->dev, BUG_D_LEAK))
		bring_saver_close(file->saver);
	bring_loader_close(file->loader);
	mutex_destroy(&file->lock);
	kfree(file);
	put_device(device);
}

static int bring_file_release(struct inode *inode, struct file *filp)
{
	bring_file_free(filp->private_data);
	return 0;
}

static const struct file_operations bring_save_fops = {
	.owner = THIS_MODULE,
	.read = bring_save_read,
	.poll = bring_save_poll,
	.unlocked_ioctl = bring_save_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.release = bring_file_release,
};

static const struct file_operations bring_save_fops_no_poll = {
	.owner = THIS_MODULE,
	.read = bring_save_read,
	.unlocked_ioctl = bring_save_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.release = bring_file_release,
};

static const struct file_operations bring_load_fops = {
	.owner = THIS_MODULE,
	.write = bring_load_write,
	.release = bring_file_release,
};

static const struct file_operations *bring_fops(struct bring_device *dev,
						bool saving)
{
	if (!saving)
		return &bring_load_fops;
	return bring_odd(dev, ODD_NO_POLL) ? &bring_save_fops_no_poll :
					     &bring_save_fops;
}

/* One reference is the session's; bring_file_get() takes the user's. */
struct bring_file *bring_file_open(struct bring_device *dev, bool saving)
{
	struct bring_file *file = kzalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);
	int ret = -ENOMEM;

	if (!file)
		return ERR_PTR(-ENOMEM);
	file->dev = dev;
	get_device(&dev->vdev.device);
	mutex_init(&file->lock);
	if (saving)
		file->saver = bring_saver_open(dev);
	else
		file->loader = bring_loader_open(dev);
	if (!file->saver && !file->loader)
		goto free;
	file->filp = anon_inode_getfile("vfio-bringup", bring_fops(dev, saving),
					file, saving ? O_RDONLY : O_WRONLY);
	ret = PTR_ERR_OR_ZERO(file->filp);
	if (ret)
		goto free;
	stream_open(file->filp->f_inode, file->filp);
	return file;
free:
	bring_file_free(file);
	return ERR_PTR(ret);
}

struct file *bring_file_get(struct bring_file *file)
{
	return get_file(file->filp);
}

/* The device is stopped: its whole state is to come. */
void bring_file_finish(struct bring_file *file)
{
	mutex_lock(&file->lock);
	bring_saver_finish(file->saver);
	mutex_unlock(&file->lock);
	wake_up(&file->dev->wake);
}

int bring_file_commit(struct bring_file *file)
{
	int ret;

	mutex_lock(&file->lock);
	ret = bring_loader_commit(file->loader);
	mutex_unlock(&file->lock);
	return ret;
}

u64 bring_file_rest(struct bring_file *file)
{
	u64 rest;

	mutex_lock(&file->lock);
	rest = bring_saver_rest(file->saver);
	mutex_unlock(&file->lock);
	return rest;
}

/* From here on the fd is good for nothing. */
void bring_file_disable(struct bring_file **which)
{
	struct bring_file *file = *which;

	if (!file)
		return;
	*which = NULL;
	mutex_lock(&file->lock);
	if (!bring_bug(file->dev, BUG_D_READ_AFTER))
		file->disabled = true;
	mutex_unlock(&file->lock);
	wake_up(&file->dev->wake);
	fput(file->filp);
}
