// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which pages of RAM the device has written. abi d shows it as
 * VFIO_DEVICE_FEATURE_DMA_LOGGING_*; abi a and b as bitmaps of their regions.
 *
 * A page enters the log after its bytes were written: a report in between
 * would otherwise clear it and the bytes would come unseen.
 */
#include <linux/interval_tree.h>
#include <linux/iova_bitmap.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include "bringup.h"

static bool bring_log_covers(struct bring_device *dev, u64 start, u64 last)
{
	u32 n = bring_bug(dev, BUG_D_LOG_ONE_RANGE) ? 1 : dev->nr_ranges;
	u32 i;

	if (!dev->ranges)
		return true;
	for (i = 0; i < n; i++)
		if (start <= dev->ranges[i].last && last >= dev->ranges[i].start)
			return true;
	return false;
}

/* @iova to its end lie in one page (dma.c). */
void bring_log_mark(struct bring_device *dev, u64 iova, u64 len)
{
	u64 byte = bring_bug(dev, BUG_D_LOG_PAGE_END) ? iova + len : iova;
	u64 start = byte & PAGE_MASK;

	mutex_lock(&dev->log_lock);
	if (dev->logging && bring_log_covers(dev, start, start + PAGE_SIZE - 1) &&
	    xa_is_err(xa_store(&dev->log, start >> PAGE_SHIFT, xa_mk_value(1),
			       GFP_KERNEL_ACCOUNT)))
		dev->log_lost = true;
	mutex_unlock(&dev->log_lock);
}

/* Without ranges: all of the address space. */
int bring_log_begin(struct bring_device *dev)
{
	int ret = 0;

	mutex_lock(&dev->log_lock);
	if (dev->logging && !bring_bug(dev, BUG_D_LOG_TWICE))
		ret = -EBUSY;
	else
		dev->logging = true;
	mutex_unlock(&dev->log_lock);
	return ret;
}

void bring_log_end(struct bring_device *dev)
{
	mutex_lock(&dev->log_lock);
	dev->logging = false;
	dev->log_lost = false;
	xa_destroy(&dev->log);
	kvfree(dev->ranges);
	dev->ranges = NULL;
	dev->nr_ranges = 0;
	mutex_unlock(&dev->log_lock);
}

unsigned long bring_log_take(struct bring_device *dev, unsigned long page,
			     unsigned long last)
{
	unsigned long found = page;
	void *entry;

	mutex_lock(&dev->log_lock);
	entry = xa_find(&dev->log, &found, last, XA_PRESENT);
	if (entry)
		xa_erase(&dev->log, found);
	mutex_unlock(&dev->log_lock);
	return entry ? found : ULONG_MAX;
}

static int bring_log_start(struct vfio_device *vdev,
			   struct rb_root_cached *ranges, u32 nnodes,
			   u64 *page_size)
{
	struct bring_device *dev = bring_of(vdev);
	struct interval_tree_node *node;
	struct bring_range *copy;
	u32 n = 0;
	int ret = bring_gone();

	if (ret)
		return ret;
	copy = kvcalloc(nnodes, sizeof(*copy), GFP_KERNEL_ACCOUNT);
	if (!copy)
		return -ENOMEM;
	for (node = interval_tree_iter_first(ranges, 0, ULONG_MAX);
	     node && n < nnodes;
	     node = interval_tree_iter_next(node, 0, ULONG_MAX))
		copy[n++] = (struct bring_range){ node->start, node->last };
	ret = bring_log_begin(dev);
	if (ret) {
		kvfree(copy);
		return ret;
	}
	mutex_lock(&dev->log_lock);
	kvfree(dev->ranges);
	dev->ranges = copy;
	dev->nr_ranges = n;
	mutex_unlock(&dev->log_lock);
	*page_size = bring_odd(dev, ODD_LOG_64K) ? SZ_64K : PAGE_SIZE;
	return 0;
}

static int bring_log_stop(struct vfio_device *vdev)
{
	bring_log_end(bring_of(vdev));
	return bring_gone();
}

/* [start, start + size), clipped to what was asked for. */
static void bring_log_report(struct iova_bitmap *dirty, u64 start, u64 size,
			     const struct bring_range *asked)
{
	u64 last = min(start + size - 1, asked->last);

	start = max(start, asked->start);
	if (start <= last)
		iova_bitmap_set(dirty, start, last - start + 1);
}

static void bring_log_collect(struct bring_device *dev,
			      const struct bring_range *asked,
			      struct iova_bitmap *dirty)
{
	u64 unit = bring_odd(dev, ODD_LOG_64K) ? SZ_64K : PAGE_SIZE;
	u64 from = asked->start & ~(unit - 1);
	unsigned long page;
	void *entry;

	/* Of a unit that lies in two reports the first tells; both may. */
	xa_for_each_range(&dev->log, page, entry, from >> PAGE_SHIFT,
			  asked->last >> PAGE_SHIFT) {
		u64 start = (u64)page << PAGE_SHIFT & ~(unit - 1);

		bring_log_report(dirty, start, unit, asked);
		if (unit == PAGE_SIZE ||
		    (start >= asked->start && start + unit - 1 <= asked->last))
			xa_erase(&dev->log, page);
	}
	if (bring_odd(dev, ODD_OVER_REPORT))
		bring_log_report(dirty, asked->start,
				 asked->last - asked->start + 1, asked);
	if (bring_bug(dev, BUG_D_LOG_CLEARS_ALL))
		xa_destroy(&dev->log);
}

static int bring_log_read_and_clear(struct vfio_device *vdev,
				    unsigned long iova, unsigned long length,
				    struct iova_bitmap *dirty)
{
	struct bring_range asked = { iova, (u64)iova + length - 1 };
	struct bring_device *dev = bring_of(vdev);
	int ret = bring_gone();

	if (ret)
		return ret;
	mutex_lock(&dev->log_lock);
	if (!dev->logging && !bring_bug(dev, BUG_D_LOG_NO_START))
		ret = -EINVAL;
	else if (dev->log_lost)
		ret = -ENOMEM;
	else
		bring_log_collect(dev, &asked, dirty);
	mutex_unlock(&dev->log_lock);
	return ret;
}

const struct vfio_log_ops bring_log_ops = {
	.log_start = bring_log_start,
	.log_stop = bring_log_stop,
	.log_read_and_clear = bring_log_read_and_clear,
};
