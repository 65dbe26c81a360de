// SPDX-License-Identifier: GPL-2.0-only
/*
 * abi b and c: the region's registers and the states (region-bc.h).
 */
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include "region-bc.h"

/* A transition as the text has it, and back to RUNNING when a move fails. */
static bool bc_legal(struct bring_device *dev, u32 from, u32 to)
{
	if (to & SAVING && to & RESUMING)
		return to == STATES && bring_bug(dev, BUG_B_STATE_111);
	if (to == (RESUMING | RUNNING))
		return bring_bug(dev, BUG_C_STATE_101);
	if (to == from)
		return true;
	switch (from) {
	case BAD:
		return false;
	case RESUMING:
		return to == RUNNING || (!to && !bring_late_validation());
	case SAVING:
		return to == 0 || to == RUNNING;
	case 0:
		return to != (RUNNING | SAVING);
	case RUNNING | SAVING:
		return to != RESUMING;
	}
	return true;
}

static int bc_leave(struct bring_device *dev, u32 to)
{
	struct bc_session *s = bc_of(dev);

	if (dev->state == RESUMING) {
		int ret = s->piece_left ? -EINVAL :
					  bring_loader_commit(s->loader);

		if (ret)
			return ret;
		bc_end_sessions(s);
	}
	if (dev->state & SAVING && !(to & SAVING)) {
		bc_end_sessions(s);
		if (dev->abi == BRING_B)
			bring_log_end(dev);
	}
	return 0;
}

static int bc_stop_or_run(struct bring_device *dev, u32 to)
{
	bool bug = dev->abi == BRING_B ? bring_bug(dev, BUG_B_STOP_RUNS) :
					 bring_bug(dev, BUG_C_STOP_RUNS);

	if (to & RUNNING) {
		bring_thaw(dev);
		bring_release(dev);
		return 0;
	}
	return bring_hold(dev, bug);
}

static int bc_enter(struct bring_device *dev, u32 to)
{
	struct bc_session *s = bc_of(dev);

	if (to & SAVING && !s->saver) {
		s->saver = bring_saver_open(dev);
		if (!s->saver)
			return -ENOMEM;
		if (dev->abi == BRING_B)
			bring_log_begin(dev);
	}
	if (to == SAVING)
		bring_saver_finish(s->saver);
	if (to == RESUMING) {
		s->loader = bring_loader_open(dev);
		if (!s->loader)
			return -ENOMEM;
	}
	return 0;
}

/* The write is the transition. What fails leaves the state as it was. */
static int bc_set_state(struct bring_device *dev, u32 value)
{
	struct bc_session *s = bc_of(dev);
	u32 to = value & STATES;
	bool error;
	int ret;

	if (!bc_legal(dev, dev->state, to))
		return -EINVAL;
	s->info.device_state = bring_bug(dev, BUG_C_RESERVED_BITS) ? 0 :
							value & ~STATES;
	if (to == dev->state)
		return 0;
	ret = bring_fail_arc(dev->state, to, &error);
	if (ret && error && dev->abi == BRING_C) {
		bc_end_sessions(s);
		dev->state = BAD;
	}
	/* Logging begins before the device may go on, so that none is lost. */
	ret = ret ?: bc_leave(dev, to);
	ret = ret ?: bc_stop_or_run(dev, to);
	ret = ret ?: bc_enter(dev, to);
	if (!ret)
		dev->state = to;
	else
		bc_stop_or_run(dev, dev->state);
	return ret;
}

static int bc_read_field(struct bring_device *dev, u64 at, u64 *value)
{
	struct bc_session *s = bc_of(dev);

	*value = 0;
	switch (at) {
	case offsetof(struct bc_info, device_state):
		*value = s->info.device_state | dev->state;
		return 0;
	case offsetof(struct bc_info, reserved):
		return 0;
	case offsetof(struct bc_info, pending_bytes):
		*value = bc_pending(dev);
		return 0;
	case offsetof(struct bc_info, data_offset):
		if (!s->bitmap)
			bc_stage(dev);
		*value = s->bitmap ? DATA_AT : bc_offset(dev);
		return 0;
	case offsetof(struct bc_info, data_size):
		s->size_read = true;
		*value = s->staged;
		return 0;
	case offsetof(struct bc_info, copied_pfns):
		return bc_copied(dev, value);
	}
	return -EINVAL;
}

static int bc_write_field(struct bring_device *dev, u64 at, u64 value)
{
	struct bc_session *s = bc_of(dev);

	switch (at) {
	case offsetof(struct bc_info, device_state):
		return bc_set_state(dev, value);
	case offsetof(struct bc_info, reserved):
		return 0;
	case offsetof(struct bc_info, data_size):
		return bc_commit(dev, value);
	case offsetof(struct bc_info, start_pfn):
		s->info.start_pfn = value;
		return 0;
	case offsetof(struct bc_info, page_size):
		s->info.page_size = value;
		return 0;
	case offsetof(struct bc_info, total_pfns):
		s->info.total_pfns = value;
		return 0;
	}
	return -EINVAL;
}

/* Native width and place, and within the struct of this generation. */
static bool bc_field(struct bring_device *dev, u64 at, size_t count)
{
	size_t size = dev->abi == BRING_B ? sizeof(struct bc_info) :
					    offsetof(struct bc_info, start_pfn);

	if (bring_bug(dev, BUG_C_NARROW) && at < size && count < 8)
		return true;
	if (at < offsetof(struct bc_info, pending_bytes))
		return count == 4 && at % 4 == 0;
	return count == 8 && at % 8 == 0 && at + count <= size;
}

static ssize_t bc_field_rw(struct bring_device *dev, char __user *buf,
			   size_t count, u64 at, bool write)
{
	u64 value = 0;
	int ret;

	if (!bc_field(dev, at, count))
		return -EINVAL;
	if (write) {
		if (copy_from_user(&value, buf, count))
			return -EFAULT;
		ret = bc_write_field(dev, at, value);
	} else {
		/* A bug may let half a field through. */
		u64 from = at < 8 ? at & ~3ULL : at & ~7ULL;

		ret = bc_read_field(dev, from, &value);
		value >>= 8 * (at - from);
		if (!ret && copy_to_user(buf, &value, count))
			ret = -EFAULT;
	}
	return ret ?: count;
}

static ssize_t bc_section_rw(struct bring_device *dev, char __user *buf,
			     size_t count, u64 at, bool write)
{
	u8 *bytes = bc_of(dev)->section + at - DATA_AT;
	int ret;

	if (at + count > DATA_AT + dev->section)
		return -EINVAL;
	if (write && !(dev->state & RESUMING))
		return -EINVAL;
	ret = write ? 0 : bc_read_fails(dev);
	if (ret)
		return ret;
	if (write ? copy_from_user(bytes, buf, count) :
		    copy_to_user(buf, bytes, count))
		return -EFAULT;
	return count;
}

static ssize_t bc_rw(struct bring_device *dev, unsigned int index,
		     char __user *buf, size_t count, u64 at, bool write)
{
	ssize_t ret;

	mutex_lock(&dev->state_mutex);
	if (!count || count > dev->section)
		ret = count ? -EINVAL : 0;
	else if (at >= DATA_AT)
		ret = bc_section_rw(dev, buf, count, at, write);
	else
		ret = bc_field_rw(dev, buf, count, at, write);
	mutex_unlock(&dev->state_mutex);
	return ret;
}

static int bc_init(struct bring_device *dev)
{
	struct bring_extra_region *extra = &dev->extra[0];
	struct bc_session *s = kzalloc(sizeof(*s), GFP_KERNEL);

	if (!s)
		return -ENOMEM;
	s->section = vmalloc_user(dev->section);
	if (!s->section) {
		kfree(s);
		return -ENOMEM;
	}
	dev->session = s;
	dev->state = RUNNING;
	dev->nr_extra = 1;
	extra->type = dev->abi == BRING_B ? dev->region_type : 3;
	extra->subtype = 1;
	extra->size = DATA_AT + dev->section;
	if (dev->features & BRING_MMAP) {
		extra->map = s->section;
		extra->map_at = DATA_AT;
		extra->map_size = dev->section;
	}
	return 0;
}

static void bc_release(struct bring_device *dev)
{
	struct bc_session *s = bc_of(dev);

	bc_end_sessions(s);
	vfree(s->section);
	kfree(s);
}

static void bc_reset(struct bring_device *dev, bool reset)
{
	struct bc_session *s = bc_of(dev);

	bc_end_sessions(s);
	memset(&s->info, 0, sizeof(s->info));
	if (dev->abi == BRING_B)
		bring_log_end(dev);
	if (!reset || !bring_bug(dev, BUG_C_RESET_STATE))
		dev->state = RUNNING;
	/* What the last user left; a mapping may still be there. */
	if (!reset)
		memset(s->section, 0, dev->section);
}

const struct bring_abi_ops bring_region_bc_ops = {
	.init = bc_init,
	.release = bc_release,
	.reset = bc_reset,
	.rw = bc_rw,
};
