// SPDX-License-Identifier: GPL-2.0-only
/*
 * abi b and c: the data section (region-bc.h). Chunks out of it and into it,
 * and the bitmaps of abi b, which lie in the same place.
 */
#include <linux/crc32.h>
#include <linux/log2.h>
#include <linux/sizes.h>
#include "region-bc.h"

/* So that a user has to ask more than once. */
#define PFNS_MAX	2048UL
#define PFNS_NONE	0ULL
#define PFNS_ALL	(~0ULL)

struct bc_chunk {
	u32 magic, index, len, crc;
};

#define CHUNK_MAGIC	0x43554246	/* "FBUC" */

u64 bc_offset(struct bring_device *dev)
{
	/* Page-aligned, as the section may be mapped. */
	bool moved = bring_odd(dev, ODD_MOVING_OFFSET) &&
		     bc_of(dev)->index & 1 && dev->section > PAGE_SIZE;

	return DATA_AT + (moved ? PAGE_SIZE : 0);
}

static u64 bc_room(struct bring_device *dev)
{
	return DATA_AT + dev->section - bc_offset(dev);
}

void bc_end_sessions(struct bc_session *s)
{
	bring_saver_close(s->saver);
	bring_loader_close(s->loader);
	s->saver = NULL;
	s->loader = NULL;
	s->index = 0;
	s->staged = 0;
	s->piece_left = 0;
	s->size_read = false;
	s->bitmap = false;
}

/* Puts the next chunk into the section (step b). */
void bc_stage(struct bring_device *dev)
{
	struct bc_session *s = bc_of(dev);
	u8 *at = s->section + bc_offset(dev) - DATA_AT;
	struct bc_chunk head = { .magic = CHUNK_MAGIC, .index = s->index };
	u64 room = bc_room(dev) - sizeof(head);

	if (s->staged || !s->saver)
		return;
	while (head.len < room) {
		const u8 *bytes;
		bool end;
		size_t n = bring_saver_peek(s->saver, &bytes, &end);

		if (!n)
			break;
		n = min_t(u64, n, room - head.len);
		memcpy(at + sizeof(head) + head.len, bytes, n);
		bring_saver_took(s->saver, n);
		head.len += n;
	}
	if (!head.len)
		return;
	head.crc = crc32_le(~0, at + sizeof(head), head.len);
	memcpy(at, &head, sizeof(head));
	s->staged = sizeof(head) + head.len;
	s->size_read = false;
}

/* Step a, and step f of the chunk before it. */
u64 bc_pending(struct bring_device *dev)
{
	struct bc_session *s = bc_of(dev);
	u64 initial = 0, dirty = 0;

	s->bitmap = false;
	if (s->staged && (s->size_read ||
			  bring_bug(dev, BUG_C_PENDING_CONSUMES))) {
		s->staged = 0;
		s->index++;
	}
	if (s->saver && bring_bug(dev, BUG_C_PENDING_CONSUMES))
		bc_stage(dev);
	if (s->saver)
		bring_saver_left(s->saver, &initial, &dirty);
	/* Before the device is stopped there may be nothing for now. */
	if (bring_odd(dev, ODD_NO_PRE_COPY_DATA) && dev->state & RUNNING)
		return 0;
	return s->staged + initial + dirty;
}

/* Page is one of the user's: a page_size that he chose. */
static u64 bc_bitmap(struct bring_device *dev, u64 start, u64 count,
		     unsigned int shift)
{
	struct bc_session *s = bc_of(dev);
	unsigned long *bits = (unsigned long *)s->section;
	u64 from = start << shift >> PAGE_SHIFT;
	u64 to = ((start + count) << shift >> PAGE_SHIFT) - 1;
	unsigned long page = from;
	u64 found = 0;

	bitmap_zero(bits, count);
	while ((page = bring_log_take(dev, page, to)) != ULONG_MAX) {
		u64 pfn = ((u64)page << PAGE_SHIFT >> shift) - start;

		if (bring_bug(dev, BUG_B_START_PFN))
			pfn = min(pfn + 1, count - 1);
		set_bit(pfn, bits);
		found++;
	}
	return found;
}

static bool bc_any_dirty(struct bring_device *dev, u64 start, u64 count,
			 unsigned int shift)
{
	unsigned long page = start << shift >> PAGE_SHIFT;
	bool any;

	mutex_lock(&dev->log_lock);
	any = xa_find(&dev->log, &page,
		      ((start + count) << shift >> PAGE_SHIFT) - 1, XA_PRESENT);
	mutex_unlock(&dev->log_lock);
	return any;
}

/*
 * Reading copied_pfns is the query. It answers for as many pages as it
 * likes; the user goes on behind them.
 */
int bc_copied(struct bring_device *dev, u64 *copied)
{
	struct bc_session *s = bc_of(dev);
	u64 start = s->info.start_pfn, total = s->info.total_pfns;
	unsigned int shift;
	u64 n;

	if (!(dev->state & SAVING) || !total ||
	    !is_power_of_2(s->info.page_size) ||
	    s->info.page_size < PAGE_SIZE || s->info.page_size > SZ_1G)
		return -EINVAL;
	shift = ilog2(s->info.page_size);
	if (bring_bug(dev, BUG_B_PAGE_SIZE))
		shift = PAGE_SHIFT;
	if (start + total < start || start + total > U64_MAX >> shift)
		return -EINVAL;
	n = min3(total, (u64)PFNS_MAX, dev->section * 8);
	s->bitmap = true;
	/* The bitmap lies where a chunk lay. One that was not read is lost. */
	if (s->staged)
		s->index++;
	s->staged = 0;
	if (bring_odd(dev, ODD_PFNS_ALL) || dev->log_lost) {
		*copied = PFNS_ALL;
		return 0;
	}
	*copied = PFNS_NONE;
	if (!bc_any_dirty(dev, start, bring_bug(dev, BUG_B_PARTIAL_NONE) ?
			  n : total, shift))
		return 0;
	bc_bitmap(dev, start, n, shift);
	*copied = bring_bug(dev, BUG_B_COPIED_ABOVE) ? total + 1 : n;
	return 0;
}

int bc_read_fails(struct bring_device *dev)
{
	struct bc_session *s = bc_of(dev);

	if (!s->saver || !s->staged || s->bitmap)
		return 0;
	return bring_fail_read(bring_saver_sent(s->saver) -
			       (s->staged - sizeof(struct bc_chunk)),
			       bring_stream_size(dev),
			       bring_saver_over(s->saver));
}

static int bc_feed(struct bring_device *dev, const u8 *bytes, u64 size)
{
	struct bring_loader *loader = bc_of(dev)->loader;
	u64 all = bring_stream_size(dev), done = bring_loader_fed(loader);
	int ret = bring_fail_write(done, all, false);

	if (!ret)
		ret = bring_loader_feed(loader, bytes, size);
	if (!ret && bring_loader_over(loader))
		ret = bring_fail_write(done, all, true);
	return ret;
}

/* The section has @size bytes of a chunk, or of the rest of one. */
int bc_commit(struct bring_device *dev, u64 size)
{
	struct bc_session *s = bc_of(dev);
	u8 *at = s->section + bc_offset(dev) - DATA_AT;
	struct bc_chunk head;

	if (!s->loader || !size || size > bc_room(dev))
		return -EINVAL;
	if (s->piece_left) {
		if (size > s->piece_left)
			return -EINVAL;
		s->piece_left -= size;
		return bc_feed(dev, at, size);
	}
	if (size < sizeof(head))
		return -EINVAL;
	memcpy(&head, at, sizeof(head));
	if (head.magic != CHUNK_MAGIC || head.index != s->index)
		return -EINVAL;
	at += sizeof(head);
	size -= sizeof(head);
	if (bring_bug(dev, BUG_C_SHORT_CHUNK))
		size = min_t(u64, head.len, bc_room(dev) - sizeof(head));
	if (size > head.len)
		return -EINVAL;
	if (size < head.len && !(dev->features & BRING_SPLIT))
		return -EINVAL;
	if (size == head.len && head.crc != crc32_le(~0, at, size))
		return -EINVAL;
	s->index++;
	s->piece_left = dev->features & BRING_SPLIT ? head.len - size : 0;
	return bc_feed(dev, at, size);
}
