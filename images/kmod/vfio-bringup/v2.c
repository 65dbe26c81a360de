// SPDX-License-Identifier: GPL-2.0-only
/*
 * abi d: the migration states of linux/vfio.h,
 * VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE. One function an arc; the VFIO core
 * finds the way along them.
 *
 * An arc that fails leaves the device where it was (or in ERROR, by
 * fail_error=); what the arcs before it did stays done.
 */
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/sched/signal.h>
#include "bringup.h"

#define ARC(from, to)	((from) << 4 | (to))
#define ERROR		VFIO_DEVICE_STATE_ERROR
#define RUNNING		VFIO_DEVICE_STATE_RUNNING
#define RUNNING_P2P	VFIO_DEVICE_STATE_RUNNING_P2P
#define PRE_COPY	VFIO_DEVICE_STATE_PRE_COPY
#define PRE_COPY_P2P	VFIO_DEVICE_STATE_PRE_COPY_P2P
#define STOP		VFIO_DEVICE_STATE_STOP
#define STOP_COPY	VFIO_DEVICE_STATE_STOP_COPY
#define RESUMING	VFIO_DEVICE_STATE_RESUMING

static void bring_v2_end_sessions(struct bring_device *dev)
{
	bring_file_disable(&dev->saving);
	bring_file_disable(&dev->resuming);
}

static int bring_v2_stop(struct bring_device *dev)
{
	int ret = bring_hold(dev, bring_bug(dev, BUG_D_DMA_IN_STOP));

	if (!ret && bring_bug(dev, BUG_D_LOG_DROPPED_AT_STOP)) {
		mutex_lock(&dev->log_lock);
		xa_destroy(&dev->log);
		mutex_unlock(&dev->log_lock);
	}
	return ret;
}

static void bring_v2_run(struct bring_device *dev)
{
	bring_thaw(dev);
	if (!bring_bug(dev, BUG_D_STAYS_HELD))
		bring_release(dev);
}

static struct file *bring_v2_save(struct bring_device *dev, bool stopped)
{
	struct bring_file *file = bring_file_open(dev, true);

	if (IS_ERR(file))
		return ERR_CAST(file);
	dev->saving = file;
	if (stopped)
		bring_file_finish(file);
	return bring_file_get(file);
}

static struct file *bring_v2_load(struct bring_device *dev)
{
	struct bring_file *file = bring_file_open(dev, false);

	if (IS_ERR(file))
		return ERR_CAST(file);
	dev->resuming = file;
	dev->refused = false;
	return bring_file_get(file);
}

static int bring_v2_loaded(struct bring_device *dev)
{
	int ret = 0;

	if (!dev->refused || !bring_bug(dev, BUG_D_RETRY))
		ret = bring_file_commit(dev->resuming);
	dev->refused = ret;
	if (!ret) {
		bring_file_disable(&dev->resuming);
	} else if (bring_odd(dev, ODD_FAIL_TO_ERROR)) {
		dev->state = ERROR;
		bring_v2_end_sessions(dev);
	}
	return ret;
}

static int bring_v2_end_saving(struct bring_device *dev)
{
	while (bring_bug(dev, BUG_D_ARC_HANGS) && !fatal_signal_pending(current))
		msleep(50);
	bring_file_disable(&dev->saving);
	return 0;
}

/* PRE_COPY_P2P -> STOP_COPY, or PRE_COPY -> STOP_COPY without P2P. */
static struct file *bring_v2_finish_saving(struct bring_device *dev)
{
	int ret = bring_v2_stop(dev);

	if (ret)
		return ERR_PTR(ret);
	bring_file_finish(dev->saving);
	return bring_bug(dev, BUG_D_FD_INSIDE) ? bring_file_get(dev->saving) :
						 NULL;
}

/* NULL: done, no file. */
static struct file *bring_v2_step(struct bring_device *dev, u32 from, u32 to)
{
	switch (ARC(from, to)) {
	case ARC(RUNNING, RUNNING_P2P):
	case ARC(PRE_COPY, PRE_COPY_P2P):
		return ERR_PTR(bring_hold_peer(dev));
	case ARC(RUNNING_P2P, RUNNING):
	case ARC(PRE_COPY_P2P, PRE_COPY):
	case ARC(STOP, RUNNING):
	case ARC(STOP_COPY, PRE_COPY):	/* BUG_D_STOP_COPY_BACK */
		bring_v2_run(dev);
		return NULL;
	case ARC(RUNNING_P2P, STOP):
	case ARC(RUNNING, STOP):
		return ERR_PTR(bring_v2_stop(dev));
	case ARC(STOP, RUNNING_P2P):
	case ARC(STOP_COPY, PRE_COPY_P2P):
		bring_thaw(dev);
		return ERR_PTR(bring_hold_peer(dev));
	case ARC(RUNNING, PRE_COPY):
	case ARC(RUNNING_P2P, PRE_COPY_P2P):
		return bring_v2_save(dev, false);
	case ARC(STOP, STOP_COPY):
		return bring_v2_save(dev, true);
	case ARC(PRE_COPY, STOP_COPY):
	case ARC(PRE_COPY_P2P, STOP_COPY):
		return bring_v2_finish_saving(dev);
	case ARC(PRE_COPY, RUNNING):
	case ARC(PRE_COPY_P2P, RUNNING_P2P):
		bring_file_disable(&dev->saving);
		return NULL;
	case ARC(STOP_COPY, STOP):
		return ERR_PTR(bring_v2_end_saving(dev));
	case ARC(STOP, RESUMING):
		return bring_v2_load(dev);
	case ARC(RESUMING, STOP):
		return ERR_PTR(bring_v2_loaded(dev));
	}
	/* vfio_mig_get_next_state() gives no other arc. */
	WARN_ON(true);
	return ERR_PTR(-EINVAL);
}

static int bring_v2_next(struct bring_device *dev, u32 to,
			 enum vfio_device_mig_state *next)
{
	/* Only a reset leaves it; the core would warn of being asked. */
	if (dev->state == ERROR)
		return -EINVAL;
	if (dev->state == STOP_COPY && (to == PRE_COPY || to == PRE_COPY_P2P) &&
	    bring_bug(dev, BUG_D_STOP_COPY_BACK)) {
		*next = to;
		return 0;
	}
	return vfio_mig_get_next_state(&dev->vdev, dev->state, to, next);
}

static struct file *bring_v2_arc(struct bring_device *dev, u32 next)
{
	struct file *filp;
	bool error;
	int ret;

	if (bring_odd(dev, ODD_SLOW_ARCS))
		msleep(2000);
	ret = bring_fail_arc(dev->state, next, &error);
	if (ret) {
		if (error) {
			bring_hold(dev, false);
			bring_v2_end_sessions(dev);
			dev->state = ERROR;
		}
		return ERR_PTR(ret);
	}
	filp = bring_v2_step(dev, dev->state, next);
	if (!IS_ERR(filp))
		dev->state = next;
	return filp;
}

static struct file *bring_v2_set_state(struct vfio_device *vdev,
				       enum vfio_device_mig_state new_state)
{
	struct bring_device *dev = bring_of(vdev);
	enum vfio_device_mig_state next;
	struct file *filp = NULL;
	u32 to = new_state;

	if (bring_gone())
		return ERR_PTR(-ENODEV);
	if (bring_bug(dev, BUG_D_STATE_MASKED))
		to &= 7;
	mutex_lock(&dev->state_mutex);
	/* Asking for ERROR while there is no way to be content with it. */
	if (to == ERROR)
		filp = ERR_PTR(-EINVAL);
	while (!IS_ERR(filp) && dev->state != to) {
		int ret = bring_v2_next(dev, to, &next);

		/* Only the last arc of a way gives a file. */
		if (!ret && WARN_ON(filp)) {
			fput(filp);
			ret = -EINVAL;
		}
		filp = ret ? ERR_PTR(ret) : bring_v2_arc(dev, next);
	}
	mutex_unlock(&dev->state_mutex);
	return filp;
}

static int bring_v2_get_state(struct vfio_device *vdev,
			      enum vfio_device_mig_state *state)
{
	struct bring_device *dev = bring_of(vdev);

	mutex_lock(&dev->state_mutex);
	*state = dev->state;
	mutex_unlock(&dev->state_mutex);
	return bring_gone();
}

static int bring_v2_data_size(struct vfio_device *vdev, unsigned long *length)
{
	struct bring_device *dev = bring_of(vdev);
	int ret = 0;

	if (!(dev->features & BRING_DATA_SIZE))
		return -EOPNOTSUPP;
	mutex_lock(&dev->state_mutex);
	if (!dev->saving && bring_bug(dev, BUG_D_SIZE_WHILE_SAVING))
		ret = -EINVAL;
	else
		*length = dev->saving ? bring_file_rest(dev->saving) :
					bring_stream_size(dev);
	mutex_unlock(&dev->state_mutex);
	return ret ?: bring_gone();
}

/* After a reset or at opening and closing; ERROR and all else ends here. */
static void bring_v2_reset(struct bring_device *dev, bool reset)
{
	lockdep_assert_held(&dev->state_mutex);
	if (!reset || !bring_bug(dev, BUG_D_RESET_FD))
		bring_v2_end_sessions(dev);
	if (reset ? bring_bug(dev, BUG_D_RESET_STATE) :
		    bring_bug(dev, BUG_D_REOPEN_STATE))
		return;
	dev->state = RUNNING;
}

static const struct vfio_migration_ops bring_v2_mig_ops = {
	.migration_set_state = bring_v2_set_state,
	.migration_get_state = bring_v2_get_state,
	.migration_get_data_size = bring_v2_data_size,
};

static int bring_v2_init(struct bring_device *dev)
{
	struct vfio_device *vdev = &dev->vdev;

	vdev->migration_flags = VFIO_MIGRATION_STOP_COPY;
	if (dev->features & BRING_P2P)
		vdev->migration_flags |= VFIO_MIGRATION_P2P;
	if (dev->features & BRING_PRE_COPY)
		vdev->migration_flags |= VFIO_MIGRATION_PRE_COPY;
	vdev->mig_ops = &bring_v2_mig_ops;
	if (dev->features & BRING_LOG)
		vdev->log_ops = &bring_log_ops;
	dev->state = RUNNING;
	return 0;
}

const struct bring_abi_ops bring_v2_ops = {
	.init = bring_v2_init,
	.reset = bring_v2_reset,
};
