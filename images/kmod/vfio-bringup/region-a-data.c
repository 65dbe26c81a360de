// SPDX-License-Identifier: GPL-2.0-only
/*
 * abi a: what is in the CONFIG, MEMORY and BITMAP regions (region-a.h).
 */
#include <linux/crc32.h>
#include <linux/slab.h>
#include "region-a.h"

#define CONFIG_MAGIC	0x41554246	/* "FBUA" */
#define MEMORY_MAGIC	0x4d554246	/* "FBUM" */

struct a_page {
	u64 at;
	u8 bytes[PAGE_SIZE];
};

struct a_memory {
	u32 magic, crc;		/* of all that follows */
	u64 pages;
	struct a_page page[];
};

/* An instance has no name of its own. */
static u32 a_config_magic(struct bring_device *dev)
{
	bool bound = bring_bug(dev, BUG_A_INSTANCE_BOUND);

	return CONFIG_MAGIC + (bound ? dev->instance : 0);
}

void a_drop_memory(struct a_session *s)
{
	kvfree(s->memory);
	s->memory = NULL;
	s->memory_size = 0;
	s->received = 0;
	s->loading = false;
}

int a_get_config(struct bring_device *dev)
{
	struct a_session *s = a_of(dev);
	struct a_config *config = (struct a_config *)s->config;

	if (s->config_taken && bring_bug(dev, BUG_A_CONFIG_STALE))
		return 0;
	mutex_lock(&dev->hw);
	config->regs = dev->regs;
	memcpy(config->mailbox, dev->mailbox, BRING_MAILBOX_SIZE);
	mutex_unlock(&dev->hw);
	config->magic = a_config_magic(dev);
	config->crc = crc32_le(~0, (u8 *)&config->regs,
			       sizeof(*config) - offsetof(struct a_config, regs));
	s->config_taken = true;
	return 0;
}

/* The region may be mapped and change: a copy is checked and taken. */
int a_set_config(struct bring_device *dev)
{
	struct a_session *s = a_of(dev);
	struct a_config *config;
	int ret = -EINVAL;
	u32 crc;

	if (!(dev->state & STOP) || s->config_size != sizeof(*config))
		return -EINVAL;
	config = kmemdup(s->config, sizeof(*config), GFP_KERNEL);
	if (!config)
		return -ENOMEM;
	crc = crc32_le(~0, (u8 *)&config->regs,
		       sizeof(*config) - offsetof(struct a_config, regs));
	mutex_lock(&dev->hw);
	if (bring_bug(dev, BUG_A_BAD_CONFIG) ||
	    (config->magic == a_config_magic(dev) && config->crc == crc &&
	     config->regs.memory_size == dev->regs.memory_size &&
	     !(config->regs.window & ~PAGE_MASK))) {
		config->regs.memory_size = dev->regs.memory_size;
		config->regs.irq_pending &= BIT(BRING_VECTORS) - 1;
		dev->regs = config->regs;
		memcpy(dev->mailbox, config->mailbox, BRING_MAILBOX_SIZE);
		ret = 0;
	}
	mutex_unlock(&dev->hw);
	kfree(config);
	return ret;
}

static u64 a_memory_bytes(u64 pages)
{
	return sizeof(struct a_memory) + pages * sizeof(struct a_page);
}

/* Reading the size is what takes the snapshot, and uses up what is dirty. */
int a_take_memory(struct bring_device *dev)
{
	struct a_session *s = a_of(dev);
	struct a_memory *memory;
	unsigned long n, count, done = 0;

	a_drop_memory(s);
	memory = kvmalloc(a_memory_bytes(bring_pages(dev)), GFP_KERNEL_ACCOUNT);
	if (!memory)
		return -ENOMEM;
	mutex_lock(&dev->hw);
	if (!(dev->state & LOGGING))
		bitmap_fill(dev->dirty, bring_pages(dev));
	count = bitmap_weight(dev->dirty, bring_pages(dev));
	if (dev->state & LOGGING && count && bring_bug(dev, BUG_A_LAST_PAGE))
		count--;
	for_each_set_bit(n, dev->dirty, bring_pages(dev)) {
		struct a_page *page = &memory->page[done];

		if (done == count)
			break;
		page->at = (u64)n << PAGE_SHIFT;
		memcpy(page->bytes, dev->memory + page->at, PAGE_SIZE);
		done++;
	}
	bitmap_zero(dev->dirty, bring_pages(dev));
	mutex_unlock(&dev->hw);
	memory->magic = MEMORY_MAGIC;
	memory->pages = done;
	s->memory = memory;
	s->memory_size = done ? a_memory_bytes(done) : 0;
	memory->crc = crc32_le(~0, (u8 *)&memory->pages, a_memory_bytes(done) -
			       offsetof(struct a_memory, pages));
	return 0;
}

int a_expect_memory(struct bring_device *dev, u64 size)
{
	struct a_session *s = a_of(dev);

	if (!(dev->state & STOP) || size < a_memory_bytes(1) ||
	    size > a_memory_bytes(bring_pages(dev)))
		return -EINVAL;
	a_drop_memory(s);
	s->memory = kvzalloc(size, GFP_KERNEL_ACCOUNT);
	if (!s->memory)
		return -ENOMEM;
	s->memory_size = size;
	s->loading = true;
	return 0;
}

static int a_apply_memory(struct bring_device *dev)
{
	struct a_session *s = a_of(dev);
	struct a_memory *memory = s->memory;
	u32 crc = crc32_le(~0, (u8 *)&memory->pages, s->memory_size -
			   offsetof(struct a_memory, pages));
	u64 n;

	if (memory->magic != MEMORY_MAGIC ||
	    memory->pages > bring_pages(dev) ||
	    a_memory_bytes(memory->pages) != s->memory_size ||
	    (memory->crc != crc && !bring_bug(dev, BUG_A_BAD_MEMORY)))
		return -EINVAL;
	for (n = 0; n < memory->pages; n++)
		if (memory->page[n].at & ~PAGE_MASK ||
		    memory->page[n].at >= dev->regs.memory_size)
			return -EINVAL;
	mutex_lock(&dev->hw);
	for (n = 0; n < memory->pages; n++)
		memcpy(dev->memory + memory->page[n].at, memory->page[n].bytes,
		       PAGE_SIZE);
	bitmap_fill(dev->dirty, bring_pages(dev));
	mutex_unlock(&dev->hw);
	return 0;
}

int a_memory_fails(struct bring_device *dev, bool write)
{
	struct a_session *s = a_of(dev);
	bool last = s->pos + dev->section >= s->memory_size;

	return write ? bring_fail_write(s->pos, s->memory_size, last) :
		       bring_fail_read(s->pos, s->memory_size, last);
}

/* One chunk of it, at pos; the last one may be shorter. */
int a_memory_action(struct bring_device *dev, u32 action)
{
	struct a_session *s = a_of(dev);
	u8 *all = (u8 *)s->memory;
	u64 n;
	int ret;

	if (!s->memory || s->pos % dev->section || s->pos >= s->memory_size)
		return -EINVAL;
	n = min(s->memory_size - s->pos, dev->section);
	if (action == GET_BUFFER && !s->loading) {
		memcpy(s->chunk, all + s->pos, n);
		return 0;
	}
	if (action != SET_BUFFER || !s->loading || !(dev->state & STOP) ||
	    s->pos != s->received)
		return -EINVAL;
	ret = a_memory_fails(dev, true);
	if (ret)
		return ret;
	memcpy(all + s->pos, s->chunk, n);
	s->received += n;
	if (s->received < s->memory_size)
		return 0;
	ret = a_apply_memory(dev);
	a_drop_memory(s);
	return ret;
}

/* Writing the page count is the query. */
int a_query(struct bring_device *dev, u64 start_addr, u64 count)
{
	struct a_session *s = a_of(dev);
	unsigned long first = start_addr >> PAGE_SHIFT, page;

	if (start_addr & ~PAGE_MASK || !count || first + count < first)
		return -EINVAL;
	if (count > BITMAP_SIZE * 8 && !bring_bug(dev, BUG_A_PAGE_NR))
		return -EINVAL;
	count = min_t(u64, count, BITMAP_SIZE * 8);
	if (bring_bug(dev, BUG_A_BITMAP_START))
		first = 0;
	page = first;
	memset(s->bitmap, 0, BITMAP_SIZE);
	if (!(dev->state & LOGGING))
		return 0;
	if (dev->log_lost)
		memset(s->bitmap, 0xff, BITMAP_SIZE);
	while ((page = bring_log_take(dev, page, first + count - 1)) != ULONG_MAX)
		set_bit(page - first, (unsigned long *)s->bitmap);
	return 0;
}
