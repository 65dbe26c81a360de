// SPDX-License-Identifier: GPL-2.0-only
/*
 * abi a: the CTL region, the states, and the regions as such (region-a.h).
 */
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include "region-a.h"

/* struct vfio_device_state_ctl: packed, though not what is nested in it. */
#define CTL_VERSION		0
#define CTL_STATE		4
#define CTL_CAPS		8
#define CTL_CONFIG_ACTION	12
#define CTL_CONFIG_SIZE		20
#define CTL_MEMORY_ACTION	28
#define CTL_MEMORY_SIZE		36
#define CTL_MEMORY_POS		44
#define CTL_START_ADDR		52
#define CTL_PAGE_NR		60
#define CTL_SIZE		68

static int a_set_state(struct bring_device *dev, u32 to)
{
	bool error;
	u32 from = dev->state;
	int ret = 0;

	if (to > (STOP | LOGGING) || to == from)
		return -EINVAL;
	if (bring_fail_arc(from, to, &error))
		return -EIO;
	if (to & STOP) {
		ret = bring_hold(dev, bring_bug(dev, BUG_A_STOP_RUNS));
		if (ret)
			return ret;
	}
	/* Begun anew everything is to be told again; a stop is no new begin. */
	if (to & LOGGING && !(from & (LOGGING | STOP))) {
		mutex_lock(&dev->hw);
		bitmap_fill(dev->dirty, bring_pages(dev));
		mutex_unlock(&dev->hw);
	}
	if (to & LOGGING && !dev->logging)
		bring_log_begin(dev);
	if (!to)
		bring_log_end(dev);
	if (!(to & STOP) &&
	    !(from == (STOP | LOGGING) && bring_bug(dev, BUG_A_STOP_LOGGING_RUNS))) {
		bring_thaw(dev);
		bring_release(dev);
	}
	dev->state = to;
	return 0;
}

static int a_read_field(struct bring_device *dev, u64 at, u64 *value)
{
	struct a_session *s = a_of(dev);
	int ret = 0;

	switch (at) {
	case CTL_VERSION:
		*value = 1;
		return 0;
	case CTL_CAPS:
		*value = a_caps(dev);
		return 0;
	case CTL_CONFIG_SIZE:
		*value = sizeof(struct a_config);
		return 0;
	case CTL_MEMORY_SIZE:
		if (!(a_caps(dev) & CAP_MEMORY))
			return -EINVAL;
		ret = a_take_memory(dev);
		*value = s->memory_size;
		return ret;
	case CTL_MEMORY_POS:
		*value = s->pos;
		return 0;
	}
	return -EINVAL;
}

static int a_write_field(struct bring_device *dev, u64 at, u64 value)
{
	struct a_session *s = a_of(dev);
	u32 caps = a_caps(dev);

	switch (at) {
	case CTL_STATE:
		return a_set_state(dev, value);
	case CTL_CONFIG_ACTION:
		if (value == GET_BUFFER)
			return a_get_config(dev);
		return value == SET_BUFFER ? a_set_config(dev) : -EINVAL;
	case CTL_CONFIG_SIZE:
		s->config_size = value;
		return value == sizeof(struct a_config) ? 0 : -EINVAL;
	case CTL_MEMORY_ACTION:
		return caps & CAP_MEMORY ? a_memory_action(dev, value) : -EINVAL;
	case CTL_MEMORY_SIZE:
		return caps & CAP_MEMORY ? a_expect_memory(dev, value) : -EINVAL;
	case CTL_MEMORY_POS:
		s->pos = value;
		return 0;
	case CTL_START_ADDR:
		s->start_addr = value;
		return 0;
	case CTL_PAGE_NR:
		return caps & CAP_BITMAP ? a_query(dev, s->start_addr, value) :
					   -EINVAL;
	}
	return -EINVAL;
}

static size_t a_field_size(u64 at)
{
	switch (at) {
	case CTL_VERSION:
	case CTL_STATE:
	case CTL_CAPS:
	case CTL_CONFIG_ACTION:
	case CTL_MEMORY_ACTION:
		return 4;
	case CTL_CONFIG_SIZE:
	case CTL_MEMORY_SIZE:
	case CTL_MEMORY_POS:
	case CTL_START_ADDR:
	case CTL_PAGE_NR:
		return 8;
	}
	return 0;
}

static ssize_t a_ctl_rw(struct bring_device *dev, char __user *buf,
			size_t count, u64 at, bool write)
{
	u64 value[2] = {};
	int ret;

	/* GVT-g has start_addr and page_nr written as one. */
	bool both = write && at == CTL_START_ADDR && count == sizeof(value);

	if (count != a_field_size(at) && !both)
		return -EINVAL;
	if (!write) {
		ret = a_read_field(dev, at, value);
		if (!ret && copy_to_user(buf, value, count))
			ret = -EFAULT;
		return ret ?: count;
	}
	if (copy_from_user(value, buf, count))
		return -EFAULT;
	ret = a_write_field(dev, at, value[0]);
	if (!ret && both)
		ret = a_write_field(dev, CTL_PAGE_NR, value[1]);
	return ret ?: count;
}

static ssize_t a_data_rw(struct bring_device *dev, unsigned int index,
			 char __user *buf, size_t count, u64 at, bool write)
{
	struct bring_extra_region *extra = &dev->extra[index];
	u8 *data[] = {
		[REGION_CONFIG] = a_of(dev)->config,
		[REGION_MEMORY] = a_of(dev)->chunk,
		[REGION_BITMAP] = a_of(dev)->bitmap,
	};
	/* Without device memory the bitmap is the third region. */
	u8 *bytes = data[extra->subtype - 1];
	bool saves = !write && bytes == a_of(dev)->chunk;
	int ret = saves ? a_memory_fails(dev, false) : 0;

	if (ret)
		return ret;
	if (at >= extra->size || count > extra->size - at ||
	    (write && bytes == a_of(dev)->bitmap))
		return -EINVAL;
	if (write ? copy_from_user(bytes + at, buf, count) :
		    copy_to_user(buf, bytes + at, count))
		return -EFAULT;
	return count;
}

static ssize_t a_rw(struct bring_device *dev, unsigned int index,
		    char __user *buf, size_t count, u64 at, bool write)
{
	ssize_t ret;

	mutex_lock(&dev->state_mutex);
	if (index == REGION_CTL)
		ret = a_ctl_rw(dev, buf, count, at, write);
	else
		ret = a_data_rw(dev, index, buf, count, at, write);
	mutex_unlock(&dev->state_mutex);
	return ret;
}

static void a_region(struct bring_device *dev, u32 subtype, u64 size, void *data)
{
	struct bring_extra_region *extra = &dev->extra[dev->nr_extra++];

	extra->type = 2;
	extra->subtype = subtype;
	extra->size = size;
	if (data && dev->features & BRING_MMAP) {
		extra->map = data;
		extra->map_size = size;
	}
}

static void a_release(struct bring_device *dev)
{
	struct a_session *s = a_of(dev);

	a_drop_memory(s);
	vfree(s->config);
	vfree(s->chunk);
	vfree(s->bitmap);
	kfree(s);
}

static int a_init(struct bring_device *dev)
{
	struct a_session *s = kzalloc(sizeof(*s), GFP_KERNEL);

	BUILD_BUG_ON(sizeof(struct a_config) > CONFIG_SIZE);
	if (!s)
		return -ENOMEM;
	dev->session = s;
	s->config = vmalloc_user(CONFIG_SIZE);
	s->chunk = vmalloc_user(dev->section);
	s->bitmap = vmalloc_user(BITMAP_SIZE);
	if (!s->config || !s->chunk || !s->bitmap) {
		a_release(dev);
		return -ENOMEM;
	}
	a_region(dev, REGION_CTL + 1, CTL_SIZE, NULL);
	a_region(dev, REGION_CONFIG + 1, CONFIG_SIZE, s->config);
	if (a_caps(dev) & CAP_MEMORY)
		a_region(dev, REGION_MEMORY + 1, dev->section, s->chunk);
	if (a_caps(dev) & CAP_BITMAP)
		a_region(dev, REGION_BITMAP + 1, BITMAP_SIZE, s->bitmap);
	return 0;
}

static void a_reset(struct bring_device *dev, bool reset)
{
	struct a_session *s = a_of(dev);

	a_drop_memory(s);
	bring_log_end(dev);
	s->config_taken = false;
	s->config_size = 0;
	s->start_addr = 0;
	s->pos = 0;
	dev->state = 0;
	if (reset)
		return;
	memset(s->config, 0, CONFIG_SIZE);
	memset(s->chunk, 0, dev->section);
	memset(s->bitmap, 0, BITMAP_SIZE);
}

const struct bring_abi_ops bring_region_a_ops = {
	.init = a_init,
	.release = a_release,
	.reset = a_reset,
	.rw = a_rw,
};
