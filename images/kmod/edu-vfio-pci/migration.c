// SPDX-License-Identifier: GPL-2.0-only
/*
 * The migration states (linux/vfio.h, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE)
 * with STOP_COPY, P2P and PRE_COPY. One function an arc; the VFIO core finds
 * the way along them.
 *
 * An arc that fails leaves the device in the state it was in, unless the
 * device itself is then in a state that nobody knows: that is ERROR, and
 * only a reset leaves it.
 */
#include <linux/file.h>
#include <linux/slab.h>
#include "edu.h"

#define ARC(from, to)	((from) << 4 | (to))
#define RUNNING		VFIO_DEVICE_STATE_RUNNING
#define RUNNING_P2P	VFIO_DEVICE_STATE_RUNNING_P2P
#define PRE_COPY	VFIO_DEVICE_STATE_PRE_COPY
#define PRE_COPY_P2P	VFIO_DEVICE_STATE_PRE_COPY_P2P
#define STOP		VFIO_DEVICE_STATE_STOP
#define STOP_COPY	VFIO_DEVICE_STATE_STOP_COPY
#define RESUMING	VFIO_DEVICE_STATE_RESUMING

struct edu_whole {
	struct edu_regs regs;
	struct edu_inner inner;
};

/* P2P: edu speaks to RAM and to other devices alike, so it falls silent. */
static int edu_quiesce(struct edu_device *edu)
{
	int ret;

	mutex_lock(&edu->hw_mutex);
	ret = edu_hw_quiesce(edu);
	mutex_unlock(&edu->hw_mutex);
	return ret;
}

static void edu_unquiesce(struct edu_device *edu)
{
	mutex_lock(&edu->hw_mutex);
	edu->stopped = false;
	mutex_unlock(&edu->hw_mutex);
}

/* Puts the stopped device's state into the file. */
static int edu_finish_saving(struct edu_device *edu, struct edu_file *file)
{
	struct edu_whole *whole = kzalloc(sizeof(*whole), GFP_KERNEL);
	int ret;

	if (!whole)
		return -ENOMEM;
	mutex_lock(&edu->hw_mutex);
	ret = edu_hw_read_regs(edu, &whole->regs);
	if (!ret)
		ret = edu_hw_save(edu, &whole->inner);
	mutex_unlock(&edu->hw_mutex);
	if (!ret)
		ret = edu_stream_finish(file, &whole->regs, &whole->inner);
	/* A transfer that never ended may end at any time. */
	if (ret == -ETIMEDOUT) {
		edu->state = VFIO_DEVICE_STATE_ERROR;
		edu_stream_disable(&edu->saving);
	}
	kfree(whole);
	return ret;
}

static struct file *edu_start_saving(struct edu_device *edu, bool stopped)
{
	struct edu_file *file = edu_stream_open_saving(edu);
	int ret;

	if (IS_ERR(file))
		return ERR_CAST(file);
	edu->saving = file;
	if (stopped) {
		ret = edu_finish_saving(edu, file);
		if (ret) {
			edu_stream_disable(&edu->saving);
			return ERR_PTR(ret);
		}
	}
	return edu_stream_get_file(file);
}

static struct file *edu_start_resuming(struct edu_device *edu)
{
	struct edu_file *file = edu_stream_open_resuming(edu);

	if (IS_ERR(file))
		return ERR_CAST(file);
	edu->resuming = file;
	return edu_stream_get_file(file);
}

/* Everything is checked before the device is touched. */
static int edu_finish_resuming(struct edu_device *edu)
{
	struct edu_whole *whole = kzalloc(sizeof(*whole), GFP_KERNEL);
	int ret;

	if (!whole)
		return -ENOMEM;
	ret = edu_stream_loaded(edu->resuming, &whole->regs, &whole->inner);
	if (ret)
		goto out;
	mutex_lock(&edu->hw_mutex);
	ret = edu_hw_load(edu, &whole->regs, &whole->inner);
	mutex_unlock(&edu->hw_mutex);
	if (ret)
		edu->state = VFIO_DEVICE_STATE_ERROR;
	edu_stream_disable(&edu->resuming);
out:
	kfree(whole);
	return ret;
}

/* NULL: done, no file. */
static struct file *edu_step(struct edu_device *edu, u32 from, u32 to)
{
	switch (ARC(from, to)) {
	case ARC(RUNNING, RUNNING_P2P):
	case ARC(PRE_COPY, PRE_COPY_P2P):
		return ERR_PTR(edu_quiesce(edu));
	case ARC(RUNNING_P2P, RUNNING):
	case ARC(PRE_COPY_P2P, PRE_COPY):
		edu_unquiesce(edu);
		return NULL;
	case ARC(RUNNING_P2P, STOP):
	case ARC(STOP, RUNNING_P2P):
		return NULL;
	case ARC(RUNNING, PRE_COPY):
	case ARC(RUNNING_P2P, PRE_COPY_P2P):
		return edu_start_saving(edu, false);
	case ARC(STOP, STOP_COPY):
		return edu_start_saving(edu, true);
	case ARC(PRE_COPY_P2P, STOP_COPY):
		return ERR_PTR(edu_finish_saving(edu, edu->saving));
	case ARC(PRE_COPY, RUNNING):
	case ARC(PRE_COPY_P2P, RUNNING_P2P):
	case ARC(STOP_COPY, STOP):
		edu_stream_disable(&edu->saving);
		return NULL;
	case ARC(STOP, RESUMING):
		return edu_start_resuming(edu);
	case ARC(RESUMING, STOP):
		return ERR_PTR(edu_finish_resuming(edu));
	}
	/* vfio_mig_get_next_state() gives no other arc. */
	WARN_ON(true);
	return ERR_PTR(-EINVAL);
}

static struct file *edu_set_state(struct vfio_device *vdev,
				  enum vfio_device_mig_state new_state)
{
	struct edu_device *edu = edu_of(vdev);
	enum vfio_device_mig_state next;
	struct file *filp = NULL;
	int ret;

	mutex_lock(&edu->state_mutex);
	/* Only a reset leaves it; the core would warn of being asked. */
	if (edu->state == VFIO_DEVICE_STATE_ERROR)
		filp = ERR_PTR(-EINVAL);
	while (!IS_ERR(filp) && edu->state != new_state) {
		ret = vfio_mig_get_next_state(vdev, edu->state, new_state,
					      &next);
		if (ret) {
			filp = ERR_PTR(ret);
			break;
		}
		filp = edu_step(edu, edu->state, next);
		if (IS_ERR(filp))
			break;
		edu->state = next;
		/* The core's way gives a file on its last arc only. */
		if (WARN_ON(filp && next != new_state)) {
			fput(filp);
			filp = ERR_PTR(-EINVAL);
			break;
		}
	}
	edu_state_unlock(edu);
	return filp;
}

static int edu_get_state(struct vfio_device *vdev,
			 enum vfio_device_mig_state *state)
{
	struct edu_device *edu = edu_of(vdev);

	mutex_lock(&edu->state_mutex);
	*state = edu->state;
	edu_state_unlock(edu);
	return 0;
}

static int edu_get_data_size(struct vfio_device *vdev, unsigned long *length)
{
	struct edu_device *edu = edu_of(vdev);

	mutex_lock(&edu->state_mutex);
	*length = edu_stream_size_left(edu->saving);
	edu_state_unlock(edu);
	return 0;
}

/* Under state_mutex: a device that was just reset runs. */
void edu_migration_reset(struct edu_device *edu)
{
	lockdep_assert_held(&edu->state_mutex);
	edu_stream_disable(&edu->saving);
	edu_stream_disable(&edu->resuming);
	edu->state = VFIO_DEVICE_STATE_RUNNING;
}

const struct vfio_migration_ops edu_migration_ops = {
	.migration_set_state = edu_set_state,
	.migration_get_state = edu_get_state,
	.migration_get_data_size = edu_get_data_size,
};
