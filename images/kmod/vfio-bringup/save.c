// SPDX-License-Identifier: GPL-2.0-only
/*
 * The internal state into bytes (stream.h). A saver has a queue of whole
 * records; what was queued is sent, even if the page changes meanwhile: then
 * it comes again.
 */
#include <linux/slab.h>
#include "stream.h"

#define QUEUE_SIZE	0x10000
#define PAD_MAX		64

struct bring_saver {
	struct bring_device *dev;
	u32 seq;
	bool begun, finish, ended;
	unsigned long *unsent;	/* pages that have never been sent */
	size_t len, pos, initial;
	u64 sent;
	u8 queue[QUEUE_SIZE];
};

static void bring_queue(struct bring_saver *saver, u32 type, const void *body,
			u32 len)
{
	struct rec_head head = {
		.magic = REC_MAGIC,
		.type = type,
		.seq = saver->seq++,
		.len = len,
	};
	u8 *to = saver->queue + saver->len;

	head.crc = rec_crc(&head, body);
	memcpy(to, &head, sizeof(head));
	memcpy(to + sizeof(head), body, len);
	saver->len += sizeof(head) + len;
}

static bool bring_queue_page(struct bring_saver *saver, struct rec_page *page)
{
	struct bring_device *dev = saver->dev;
	unsigned long n;

	mutex_lock(&dev->hw);
	n = find_first_bit(dev->dirty, bring_pages(dev));
	if (n < bring_pages(dev)) {
		/* Cleared before it is copied, as it could change meanwhile. */
		clear_bit(n, dev->dirty);
		page->at = (u64)n << PAGE_SHIFT;
		memcpy(page->bytes, dev->memory + page->at, PAGE_SIZE);
	}
	mutex_unlock(&dev->hw);
	if (n >= bring_pages(dev))
		return false;
	bring_queue(saver, REC_PAGE, page, sizeof(*page));
	if (__test_and_clear_bit(n, saver->unsent))
		saver->initial = saver->len;
	return true;
}

static void bring_queue_tail(struct bring_saver *saver)
{
	struct bring_device *dev = saver->dev;
	struct bring_regs state;
	u32 records;

	mutex_lock(&dev->hw);
	state = dev->regs;
	bring_queue(saver, REC_MAILBOX, dev->mailbox, BRING_MAILBOX_SIZE);
	mutex_unlock(&dev->hw);
	if (bring_bug(dev, BUG_D_RNG_LOST))
		state.rng = BRING_RNG_SEED;
	if (bring_bug(dev, BUG_D_INSTANCE_STATE))
		state.rng ^= dev->instance;
	bring_queue(saver, REC_STATE, &state, sizeof(state));
	records = saver->seq + 1;
	bring_queue(saver, REC_END, &records, sizeof(records));
	saver->ended = true;
}

/* Bytes of the PAD that follows IDENTITY; 0: there is none. */
static u32 bring_pad(struct bring_saver *saver)
{
	return bring_odd(saver->dev, ODD_SIZE_CHANGES) ?
	       1 + saver->dev->sessions % PAD_MAX : 0;
}

static void bring_queue_begin(struct bring_saver *saver)
{
	struct rec_identity identity = {
		.id = BRING_ID,
		.version = rec_version(saver->dev),
		.memory_size = saver->dev->regs.memory_size,
	};
	u8 pad[PAD_MAX] = {};

	bring_queue(saver, REC_IDENTITY, &identity, sizeof(identity));
	if (bring_pad(saver))
		bring_queue(saver, REC_PAD, pad, bring_pad(saver));
	saver->initial = saver->len;
	saver->begun = true;
}

/* Its pages come when the device is stopped, and are not announced before. */
static bool bring_quiet(struct bring_saver *saver)
{
	return bring_odd(saver->dev, ODD_NO_PRE_COPY_DATA);
}

/* Fills the queue with what there is. */
static void bring_fill(struct bring_saver *saver)
{
	struct rec_page *page;

	saver->pos = 0;
	saver->len = 0;
	saver->initial = 0;
	if (saver->ended)
		return;
	page = kmalloc(sizeof(*page), GFP_KERNEL);
	if (!page)
		return;
	if (!saver->begun)
		bring_queue_begin(saver);
	while (saver->len + PAGE_REC <= QUEUE_SIZE && (saver->finish || !bring_quiet(saver)))
		if (!bring_queue_page(saver, page))
			break;
	if (saver->finish && saver->len + PAGE_REC + TAIL_SIZE <= QUEUE_SIZE)
		bring_queue_tail(saver);
	kfree(page);
}

size_t bring_saver_peek(struct bring_saver *saver, const u8 **bytes, bool *end)
{
	if (saver->pos == saver->len)
		bring_fill(saver);
	*bytes = saver->queue + saver->pos;
	*end = saver->ended;
	return saver->len - saver->pos;
}

void bring_saver_took(struct bring_saver *saver, size_t bytes)
{
	saver->pos += bytes;
	saver->sent += bytes;
}

u64 bring_saver_sent(struct bring_saver *saver)
{
	return saver->sent;
}

bool bring_saver_over(struct bring_saver *saver)
{
	return saver->ended && saver->pos == saver->len;
}

void bring_saver_finish(struct bring_saver *saver)
{
	saver->finish = true;
}

bool bring_saver_finished(struct bring_saver *saver)
{
	return saver->finish;
}

static void bring_saver_count(struct bring_saver *saver, bool pages,
			      u64 *initial, u64 *dirty)
{
	struct bring_device *dev = saver->dev;
	u64 unsent = 0, all = 0;

	if (pages) {
		unsent = bitmap_weight(saver->unsent, bring_pages(dev));
		mutex_lock(&dev->hw);
		all = bitmap_weight(dev->dirty, bring_pages(dev));
		mutex_unlock(&dev->hw);
	}
	*initial = unsent * PAGE_REC;
	if (!saver->begun)
		*initial += REC_SIZE(sizeof(struct rec_identity)) +
			    (bring_pad(saver) ? REC_SIZE(bring_pad(saver)) : 0);
	if (saver->initial > saver->pos)
		*initial += saver->initial - saver->pos;
	*dirty = (all - unsent) * PAGE_REC + saver->len -
		 max(saver->pos, saver->initial);
	if (saver->finish && !saver->ended)
		*dirty += TAIL_SIZE;
}

void bring_saver_left(struct bring_saver *saver, u64 *initial, u64 *dirty)
{
	bring_saver_count(saver, saver->finish || !bring_quiet(saver), initial,
			  dirty);
}

/* All that is to come, were the device stopped now. */
u64 bring_saver_rest(struct bring_saver *saver)
{
	u64 initial, dirty;

	bring_saver_count(saver, true, &initial, &dirty);
	return initial + dirty + (saver->finish ? 0 : TAIL_SIZE);
}

/* Of a session that begins now, in a device that is stopped. */
u64 bring_stream_size(struct bring_device *dev)
{
	return REC_SIZE(sizeof(struct rec_identity)) +
	       bring_pages(dev) * PAGE_REC + TAIL_SIZE;
}

struct bring_saver *bring_saver_open(struct bring_device *dev)
{
	struct bring_saver *saver = kzalloc(sizeof(*saver), GFP_KERNEL_ACCOUNT);

	if (!saver)
		return NULL;
	saver->dev = dev;
	saver->unsent = bitmap_alloc(bring_pages(dev), GFP_KERNEL_ACCOUNT);
	if (!saver->unsent) {
		kfree(saver);
		return NULL;
	}
	mutex_lock(&dev->hw);
	if (!bring_bug(dev, BUG_D_SECOND_SESSION))
		bitmap_fill(dev->dirty, bring_pages(dev));
	bitmap_copy(saver->unsent, dev->dirty, bring_pages(dev));
	mutex_unlock(&dev->hw);
	dev->sessions++;
	return saver;
}

void bring_saver_close(struct bring_saver *saver)
{
	if (!saver)
		return;
	bitmap_free(saver->unsent);
	kfree(saver);
}
