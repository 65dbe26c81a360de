// SPDX-License-Identifier: GPL-2.0-only
/*
 * Bytes into the internal state (stream.h). They gather in a loader of their
 * own; the device is touched when all of them were there and right.
 */
#include <linux/slab.h>
#include "stream.h"

struct bring_loader {
	struct bring_device *dev;
	u32 seq;
	int error;
	size_t have;	/* bytes of the record that comes in */
	u64 fed;
	struct rec_head head;
	union rec_body body;
	bool got_identity, got_mailbox, got_state, got_end;
	unsigned long pages;
	unsigned long *got;
	u8 *memory;
	u8 mailbox[BRING_MAILBOX_SIZE];
	struct bring_regs state;
};

static int bring_check_head(struct bring_loader *loader)
{
	const struct rec_head *head = &loader->head;
	u32 len = 0;

	if (head->magic != REC_MAGIC || head->seq != loader->seq ||
	    (head->type != REC_IDENTITY) != loader->got_identity)
		return -EINVAL;
	switch (head->type) {
	case REC_IDENTITY:
		len = sizeof(struct rec_identity);
		break;
	case REC_PAGE:
		len = sizeof(struct rec_page);
		break;
	case REC_MAILBOX:
		len = BRING_MAILBOX_SIZE;
		break;
	case REC_STATE:
		len = sizeof(struct bring_regs);
		break;
	case REC_END:
		len = sizeof(u32);
		break;
	case REC_PAD:
		return head->len <= PAGE_SIZE ? 0 : -EINVAL;
	}
	return len && head->len == len ? 0 : -EINVAL;
}

static int bring_take_identity(struct bring_loader *loader)
{
	const struct rec_identity *identity = &loader->body.identity;

	if (identity->id != BRING_ID ||
	    identity->version != rec_version(loader->dev))
		return -EINVAL;
	if (identity->memory_size != loader->dev->regs.memory_size &&
	    !bring_bug(loader->dev, BUG_D_OTHER_SIZE))
		return -EINVAL;
	loader->pages = identity->memory_size >> PAGE_SHIFT;
	loader->got_identity = true;
	return 0;
}

static int bring_take_page(struct bring_loader *loader)
{
	const struct rec_page *page = &loader->body.page;

	if (page->at & ~PAGE_MASK || page->at >= loader->dev->regs.memory_size)
		return -EINVAL;
	memcpy(loader->memory + page->at, page->bytes, PAGE_SIZE);
	__set_bit(page->at >> PAGE_SHIFT, loader->got);
	return 0;
}

/*
 * Also what the CRC let through must not harm the host. Between two commands
 * the length may be below what the last one did: the next is being prepared.
 */
static int bring_take_state(struct bring_loader *loader)
{
	const struct bring_regs *state = &loader->body.state;

	if (state->id != BRING_ID || state->window & ~PAGE_MASK ||
	    state->dma_delay > BRING_DELAY_MAX ||
	    state->irq_pending >= BIT(BRING_VECTORS) ||
	    (state->dma_status & BRING_BUSY && state->dma_done > state->dma_len))
		return -EINVAL;
	loader->state = *state;
	loader->got_state = true;
	return 0;
}

static int bring_take_record(struct bring_loader *loader)
{
	const struct rec_head *head = &loader->head;

	if (head->crc != rec_crc(head, &loader->body) &&
	    !bring_bug(loader->dev, BUG_D_CRC_IGNORED))
		return -EINVAL;
	loader->seq++;
	switch (head->type) {
	case REC_IDENTITY:
		return bring_take_identity(loader);
	case REC_PAGE:
		return bring_take_page(loader);
	case REC_MAILBOX:
		memcpy(loader->mailbox, loader->body.mailbox,
		       BRING_MAILBOX_SIZE);
		loader->got_mailbox = true;
		return 0;
	case REC_STATE:
		return bring_take_state(loader);
	case REC_END:
		loader->got_end = loader->body.records == loader->seq;
		return loader->got_end ? 0 : -EINVAL;
	}
	return 0;
}

/* Takes what of the bytes belongs to the record that comes in. */
static int bring_take_bytes(struct bring_loader *loader, const u8 *bytes,
			    size_t *count)
{
	const size_t head = sizeof(loader->head);
	bool in_head = loader->have < head;
	size_t end = in_head ? head : head + loader->head.len;
	u8 *to = in_head ? (u8 *)&loader->head + loader->have :
			   (u8 *)&loader->body + loader->have - head;
	int ret;

	if (loader->got_end)
		return bring_bug(loader->dev, BUG_D_OVERSIZED) ? 0 : -EINVAL;
	*count = min(*count, end - loader->have);
	memcpy(to, bytes, *count);
	loader->have += *count;
	if (loader->have < end)
		return 0;
	if (in_head)
		return bring_check_head(loader);
	ret = bring_take_record(loader);
	loader->have = 0;
	return ret;
}

/* An error stays: nothing that comes later can mend the data. */
int bring_loader_feed(struct bring_loader *loader, const u8 *bytes,
		      size_t count)
{
	loader->fed += count;
	while (count && !loader->error) {
		size_t n = count;

		loader->error = bring_take_bytes(loader, bytes, &n);
		bytes += n;
		count -= n;
	}
	if (bring_bug(loader->dev, BUG_D_BAD_WARNS))
		WARN_ON(loader->error);
	return loader->error;
}

u64 bring_loader_fed(struct bring_loader *loader)
{
	return loader->fed;
}

bool bring_loader_over(struct bring_loader *loader)
{
	return loader->got_end;
}

static bool bring_complete(struct bring_loader *loader)
{
	unsigned long got = bitmap_weight(loader->got,
					  bring_pages(loader->dev));

	return loader->got_end && loader->got_state && loader->got_mailbox &&
	       got == loader->pages;
}

int bring_loader_commit(struct bring_loader *loader)
{
	struct bring_device *dev = loader->dev;
	u64 size = dev->regs.memory_size;

	if (loader->error)
		return loader->error;
	if (!bring_complete(loader) && !bring_bug(dev, BUG_D_TRUNCATED) &&
	    !bring_bug(dev, BUG_C_TRUNCATED) && !bring_bug(dev, BUG_B_TRUNCATED))
		return -EINVAL;
	mutex_lock(&dev->hw);
	dev->regs = loader->state;
	dev->regs.id = BRING_ID;
	dev->regs.version = BRING_VERSION;
	dev->regs.vectors = BRING_VECTORS;
	dev->regs.memory_size = size;
	if (bring_bug(dev, BUG_D_INSTANCE_STATE))
		dev->regs.rng ^= dev->instance;
	memcpy(dev->memory, loader->memory, size);
	memcpy(dev->mailbox, loader->mailbox, BRING_MAILBOX_SIZE);
	bitmap_fill(dev->dirty, bring_pages(dev));
	mutex_unlock(&dev->hw);
	return 0;
}

struct bring_loader *bring_loader_open(struct bring_device *dev)
{
	struct bring_loader *loader = kvzalloc(sizeof(*loader),
					       GFP_KERNEL_ACCOUNT);

	if (!loader)
		return NULL;
	loader->dev = dev;
	loader->memory = kvzalloc(dev->regs.memory_size, GFP_KERNEL_ACCOUNT);
	loader->got = bitmap_zalloc(bring_pages(dev), GFP_KERNEL_ACCOUNT);
	if (!loader->memory || !loader->got) {
		bring_loader_close(loader);
		return NULL;
	}
	return loader;
}

void bring_loader_close(struct bring_loader *loader)
{
	if (!loader)
		return;
	bitmap_free(loader->got);
	kvfree(loader->memory);
	kvfree(loader);
}
