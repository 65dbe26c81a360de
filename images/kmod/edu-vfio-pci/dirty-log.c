// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which pages the device has written: VFIO_DEVICE_FEATURE_DMA_LOGGING_*.
 * The device keeps no log, but its only writer is the DMA engine, and each
 * command passes through regs.c.
 *
 * A transfer lands 100 ms after its command. Its pages are dirty from the
 * command on, whether logging was on by then or not, and they stay dirty
 * through every report until the transfer was seen to have ended: a report
 * that came before the bytes did must not be the last one.
 */
#include <linux/interval_tree.h>
#include <linux/io.h>
#include <linux/iova_bitmap.h>
#include "edu.h"

static bool edu_log_covers(struct edu_device *edu, u64 start, u64 last)
{
	u32 i;

	for (i = 0; i < edu->nr_log_ranges; i++)
		if (start <= edu->log_ranges[i].last &&
		    last >= edu->log_ranges[i].start)
			return true;
	return false;
}

static void edu_log_mark(struct edu_device *edu, u64 start, u64 len)
{
	unsigned long page;

	for (page = start >> PAGE_SHIFT;
	     page <= (start + len - 1) >> PAGE_SHIFT; page++) {
		u64 iova = (u64)page << PAGE_SHIFT;

		if (!edu_log_covers(edu, iova, iova + PAGE_SIZE - 1))
			continue;
		if (xa_is_err(xa_store(&edu->log, page, xa_mk_value(1),
				       GFP_KERNEL_ACCOUNT)))
			edu->log_lost = true;
	}
}

/* Called before the command reaches the device. */
void edu_log_dma_starts(struct edu_device *edu, u64 iova, u64 len)
{
	lockdep_assert_held(&edu->hw_mutex);
	/* The device wraps around as 64-bit arithmetic does; nobody maps there. */
	if (iova + len - 1 < iova)
		return;
	edu->inflight = true;
	edu->inflight_start = iova;
	edu->inflight_len = len;
}

/* The transfer in flight has ended: from now on its pages are as any other. */
void edu_log_dma_settle(struct edu_device *edu, bool running)
{
	lockdep_assert_held(&edu->hw_mutex);
	if (!edu->inflight || running)
		return;
	if (edu->logging)
		edu_log_mark(edu, edu->inflight_start, edu->inflight_len);
	edu->inflight = false;
}

/* When in doubt, yes. */
static bool edu_dma_running(struct edu_device *edu)
{
	bool running;

	if (edu_hw_begin(edu))
		return true;
	running = readl(edu->io + EDU_REG_DMA_CMD) & EDU_CMD_RUN;
	edu_hw_end(edu);
	return running;
}

static int edu_log_start(struct vfio_device *vdev,
			 struct rb_root_cached *ranges, u32 nnodes,
			 u64 *page_size)
{
	struct edu_device *edu = edu_of(vdev);
	struct interval_tree_node *node;
	struct edu_range *copy;
	int ret = 0;
	u32 n = 0;

	copy = kvcalloc(nnodes, sizeof(*copy), GFP_KERNEL_ACCOUNT);
	if (!copy)
		return -ENOMEM;
	for (node = interval_tree_iter_first(ranges, 0, ULONG_MAX);
	     node && n < nnodes;
	     node = interval_tree_iter_next(node, 0, ULONG_MAX))
		copy[n++] = (struct edu_range){ node->start, node->last };

	mutex_lock(&edu->hw_mutex);
	if (edu->logging) {
		ret = -EBUSY;
		kvfree(copy);
	} else {
		/* One that ended before now is not ours to report. */
		edu_log_dma_settle(edu, edu_dma_running(edu));
		edu->logging = true;
		edu->log_lost = false;
		edu->log_ranges = copy;
		edu->nr_log_ranges = n;
		*page_size = PAGE_SIZE;
	}
	mutex_unlock(&edu->hw_mutex);
	return ret;
}

void edu_log_disable(struct edu_device *edu)
{
	lockdep_assert_held(&edu->hw_mutex);
	edu->logging = false;
	edu->log_lost = false;
	xa_destroy(&edu->log);
	kvfree(edu->log_ranges);
	edu->log_ranges = NULL;
	edu->nr_log_ranges = 0;
}

static int edu_log_stop(struct vfio_device *vdev)
{
	struct edu_device *edu = edu_of(vdev);

	mutex_lock(&edu->hw_mutex);
	edu_log_disable(edu);
	mutex_unlock(&edu->hw_mutex);
	return 0;
}

/* Both inclusive, clipped to what was asked for. */
static void edu_log_report(struct iova_bitmap *dirty, u64 start, u64 last,
			   u64 from, u64 to)
{
	start = max(start, from);
	last = min(last, to);
	if (start <= last)
		iova_bitmap_set(dirty, start, last - start + 1);
}

static int edu_log_read_and_clear(struct vfio_device *vdev, unsigned long iova,
				  unsigned long length,
				  struct iova_bitmap *dirty)
{
	struct edu_device *edu = edu_of(vdev);
	u64 to = (u64)iova + length - 1;
	unsigned long page;
	void *entry;
	int ret = 0;

	mutex_lock(&edu->hw_mutex);
	if (!edu->logging) {
		ret = -EINVAL;
	} else if (edu->log_lost) {
		ret = -ENOMEM;
	} else {
		/* Asked before the log is read: what ends later is still in flight. */
		edu_log_dma_settle(edu, edu_dma_running(edu));
		xa_for_each_range(&edu->log, page, entry, iova >> PAGE_SHIFT,
				  to >> PAGE_SHIFT) {
			u64 start = (u64)page << PAGE_SHIFT;

			edu_log_report(dirty, start, start + PAGE_SIZE - 1,
				       iova, to);
			xa_erase(&edu->log, page);
		}
		if (edu->inflight)
			edu_log_report(dirty, edu->inflight_start,
				       edu->inflight_start +
				       edu->inflight_len - 1, iova, to);
	}
	mutex_unlock(&edu->hw_mutex);
	return ret;
}

const struct vfio_log_ops edu_log_ops = {
	.log_start = edu_log_start,
	.log_stop = edu_log_stop,
	.log_read_and_clear = edu_log_read_and_clear,
};
