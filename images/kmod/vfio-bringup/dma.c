// SPDX-License-Identifier: GPL-2.0-only
/*
 * The internal state and its DMA engine. The engine is a kernel thread that
 * moves one chunk at a time, at most up to the end of a page: it runs when
 * nobody else does anything, as hardware would, and a driver that forgets to
 * stop it sees late DMA.
 */
#include <linux/crc32.h>
#include <linux/delay.h>
#include <linux/eventfd.h>
#include <linux/kthread.h>
#include <linux/slab.h>
#include "bringup.h"

struct bring_chunk {
	u32 op, seed, pass, len;
	u64 iova, mem, done;
	bool write;	/* to RAM */
	u8 bytes[PAGE_SIZE];
};

/* Errors in DMA_STATUS */
enum { DMA_WELL, DMA_BAD, DMA_BEYOND, DMA_FAULT };

static u64 bring_step(u64 x)
{
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x ?: 1;
}

/* README.md, "The pattern". */
u64 bring_pattern(u32 seed, u32 pass, u64 word)
{
	u64 x = seed * BRING_RNG_SEED + ((u64)pass << 40) + word;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

/* Walks the words of the pattern that [done, done + len) touches. */
static u32 bring_pattern_walk(struct bring_chunk *chunk, bool check)
{
	u32 at = 0, wrong = 0;

	while (at < chunk->len) {
		u64 byte = chunk->done + at;
		u64 word = bring_pattern(chunk->seed, chunk->pass, byte / 8);
		u32 n = min_t(u32, chunk->len - at, 8 - byte % 8);
		u8 *from = (u8 *)&word + byte % 8;

		if (!check)
			memcpy(chunk->bytes + at, from, n);
		else if (memcmp(chunk->bytes + at, from, n))
			wrong++;
		at += n;
	}
	return wrong;
}

void bring_memory_written(struct bring_device *dev, u64 at, u64 len)
{
	unsigned long first = at >> PAGE_SHIFT;

	lockdep_assert_held(&dev->hw);
	bitmap_set(dev->dirty, first, ((at + len - 1) >> PAGE_SHIFT) - first + 1);
	/* Whoever polls the data fd for more. */
	wake_up(&dev->wake);
}

static void bring_count(struct bring_device *dev)
{
	dev->regs.sequence++;
	dev->regs.rng = bring_step(dev->regs.rng);
}

void bring_mutate(struct bring_device *dev, u32 value)
{
	unsigned long page;
	unsigned int word;
	u64 *to;

	lockdep_assert_held(&dev->hw);
	dev->regs.rng ^= value;
	bring_count(dev);
	page = dev->regs.rng % bring_pages(dev);
	to = (u64 *)(dev->memory + (page << PAGE_SHIFT));
	for (word = 0; word < PAGE_SIZE / 8; word++)
		to[word] = bring_pattern(value, 0, word);
	bring_memory_written(dev, (u64)page << PAGE_SHIFT, PAGE_SIZE);
}

u64 bring_hash(struct bring_device *dev)
{
	struct bring_regs regs = dev->regs;
	u32 high;

	lockdep_assert_held(&dev->hw);
	regs.hash = 0;
	high = crc32_le(~0, dev->memory, regs.memory_size);
	high = crc32_le(high, dev->mailbox, BRING_MAILBOX_SIZE);
	return (u64)high << 32 | crc32_le(~0, (u8 *)&regs, sizeof(regs));
}

static void bring_dma_end(struct bring_device *dev, u32 error)
{
	struct bring_regs *r = &dev->regs;

	r->dma_status = BRING_STATUS(error);
	r->dma_count++;
	dev->abort = false;
	bring_count(dev);
}

void bring_dma_command(struct bring_device *dev, u32 cmd)
{
	struct bring_regs *r = &dev->regs;
	u32 op = cmd & BRING_CMD_OP;
	bool inner = op == BRING_OP_READ || op == BRING_OP_WRITE;
	u32 error = DMA_WELL;

	lockdep_assert_held(&dev->hw);
	if (r->dma_status & BRING_BUSY) {
		if (cmd)
			return;
		/* One that is under way lands before DMA_STATUS says so. */
		dev->abort = true;
		if (!dev->in_chunk)
			bring_dma_end(dev, DMA_WELL);
		return;
	}
	if (!cmd)
		return;
	r->dma_cmd = cmd;
	r->dma_done = 0;
	r->dma_errors = 0;
	r->dma_pass = 0;
	if (op < BRING_OP_READ || op > BRING_OP_CHECK || !r->dma_len ||
	    r->dma_iova + r->dma_len - 1 < r->dma_iova)
		error = DMA_BAD;
	else if (inner && (r->dma_mem >= r->memory_size ||
			   r->dma_len > r->memory_size - r->dma_mem))
		error = DMA_BEYOND;
	if (error) {
		bring_dma_end(dev, error);
		if (cmd & BRING_CMD_IRQ)
			bring_irq_raise(dev, BIT(BRING_CMD_VECTOR(cmd)));
		return;
	}
	/* As if only what was under way had to be held back. */
	if (bring_bug(dev, BUG_D_P2P_NEW) && dev->hold_peer)
		dev->hold = dev->hold_peer = false;
	r->dma_status = BRING_BUSY;
	wake_up(&dev->wake);
}

static bool bring_dma_ready(struct bring_device *dev)
{
	return dev->regs.dma_status & BRING_BUSY && !dev->hold &&
	       !(dev->hold_peer && dev->regs.dma_cmd & BRING_CMD_PEER);
}

static bool bring_chunk_begin(struct bring_device *dev,
			      struct bring_chunk *chunk)
{
	struct bring_regs *r = &dev->regs;
	bool ready;

	mutex_lock(&dev->hw);
	ready = bring_dma_ready(dev);
	if (ready) {
		chunk->op = r->dma_cmd & BRING_CMD_OP;
		chunk->seed = r->dma_seed;
		chunk->pass = r->dma_pass;
		chunk->done = r->dma_done;
		chunk->iova = r->dma_iova + r->dma_done;
		chunk->mem = r->dma_mem + r->dma_done;
		chunk->len = min_t(u64, r->dma_len - r->dma_done,
				   PAGE_SIZE - offset_in_page(chunk->iova));
		chunk->write = chunk->op == BRING_OP_WRITE ||
			       chunk->op == BRING_OP_FILL;
		if (chunk->op == BRING_OP_WRITE)
			memcpy(chunk->bytes, dev->memory + chunk->mem,
			       chunk->len);
		else if (chunk->op == BRING_OP_FILL)
			bring_pattern_walk(chunk, false);
		dev->in_chunk = true;
	}
	mutex_unlock(&dev->hw);
	return ready;
}

/* RAM, by the user's mappings. A page is logged when it has been written. */
static bool bring_chunk_move(struct bring_device *dev,
			     struct bring_chunk *chunk)
{
	bool early = bring_bug(dev, BUG_D_LOG_BEFORE_WRITE);
	bool moved;

	if (bring_hard_reset() && !bring_is_master(dev))
		return false;
	if (chunk->write && early) {
		bring_log_mark(dev, chunk->iova, chunk->len);
		msleep(50);
	}
	moved = !vfio_dma_rw(&dev->vdev, chunk->iova, chunk->bytes, chunk->len,
			     chunk->write);
	if (chunk->write && moved && !early)
		bring_log_mark(dev, chunk->iova, chunk->len);
	return moved;
}

/* true: a command or a round of it is over. */
static bool bring_chunk_end(struct bring_device *dev,
			    struct bring_chunk *chunk, bool moved)
{
	struct bring_regs *r = &dev->regs;
	bool over;

	lockdep_assert_held(&dev->hw);
	if (moved && chunk->op == BRING_OP_READ) {
		memcpy(dev->memory + chunk->mem, chunk->bytes, chunk->len);
		bring_memory_written(dev, chunk->mem, chunk->len);
	} else if (moved && chunk->op == BRING_OP_CHECK) {
		r->dma_errors += bring_pattern_walk(chunk, true);
	}
	if (moved)
		r->dma_done += chunk->len;
	over = r->dma_done >= r->dma_len;
	if (moved && over && r->dma_cmd & BRING_CMD_REPEAT && !dev->abort) {
		r->dma_done = 0;
		r->dma_pass++;
	} else if (!moved || over || dev->abort) {
		bring_dma_end(dev, moved ? DMA_WELL : DMA_FAULT);
		over = true;
	}
	return over;
}

/* The eventfd alone: what a work item does that nobody flushed. */
static void bring_late_interrupt(struct bring_device *dev, u32 cmd)
{
	struct eventfd_ctx *msi;

	msleep(100);
	mutex_lock(&dev->hw);
	msi = dev->msi[BRING_CMD_VECTOR(cmd)];
	if (msi)
		eventfd_signal(msi);
	mutex_unlock(&dev->hw);
}

static void bring_chunk(struct bring_device *dev, struct bring_chunk *chunk)
{
	bool over, moved, late = bring_bug(dev, BUG_D_IRQ_AFTER_STOP);
	u32 cmd;

	if (!bring_chunk_begin(dev, chunk))
		return;
	moved = bring_chunk_move(dev, chunk);
	mutex_lock(&dev->hw);
	cmd = dev->regs.dma_cmd;
	over = bring_chunk_end(dev, chunk, moved) && cmd & BRING_CMD_IRQ;
	if (over && !late)
		bring_irq_raise(dev, BIT(BRING_CMD_VECTOR(cmd)));
	dev->in_chunk = false;
	mutex_unlock(&dev->hw);
	wake_up(&dev->wake);
	if (over && late)
		bring_late_interrupt(dev, cmd);
}

static int bring_engine(void *data)
{
	struct bring_device *dev = data;
	struct bring_chunk *chunk = dev->chunk;

	while (!kthread_should_stop()) {
		unsigned long delay;

		wait_event_interruptible(dev->wake, bring_dma_ready(dev) ||
					 kthread_should_stop());
		delay = usecs_to_jiffies(dev->regs.dma_delay);
		/* Whoever stops the device does not wait for that. */
		if (dev->regs.dma_delay)
			wait_event_interruptible_timeout(dev->wake,
							 !bring_dma_ready(dev) ||
							 kthread_should_stop(),
							 delay);
		if (!kthread_should_stop())
			bring_chunk(dev, chunk);
	}
	return 0;
}

int bring_engine_start(struct bring_device *dev)
{
	struct task_struct *engine;

	dev->chunk = kzalloc(sizeof(*dev->chunk), GFP_KERNEL_ACCOUNT);
	if (!dev->chunk)
		return -ENOMEM;
	engine = kthread_run(bring_engine, dev, "bringup-%u", dev->instance);
	if (IS_ERR(engine)) {
		kfree(dev->chunk);
		return PTR_ERR(engine);
	}
	dev->engine = engine;
	return 0;
}

void bring_engine_stop(struct bring_device *dev)
{
	kthread_stop(dev->engine);
	dev->engine = NULL;
	kfree(dev->chunk);
	dev->chunk = NULL;
}

/* A killed user leaves the chunk under way; closing waits for the thread. */
static int bring_drain(struct bring_device *dev)
{
	wake_up(&dev->wake);
	return wait_event_killable(dev->wake, !READ_ONCE(dev->in_chunk));
}

/* All DMA ends; a stopped device also hears and says nothing. */
int bring_hold(struct bring_device *dev, bool runs_on)
{
	int ret;

	mutex_lock(&dev->hw);
	dev->hold = !runs_on;
	mutex_unlock(&dev->hw);
	wake_up(&dev->wake);
	ret = runs_on ? 0 : bring_drain(dev);
	if (ret)
		return ret;
	mutex_lock(&dev->hw);
	dev->frozen = true;
	dev->mute = true;
	if (bring_bug(dev, BUG_D_IRQ_LOST))
		dev->regs.irq_pending = 0;
	mutex_unlock(&dev->hw);
	return 0;
}

/* VFIO_DEVICE_STATE_RUNNING_P2P: no DMA to a peer; we stop all of it. */
int bring_hold_peer(struct bring_device *dev)
{
	mutex_lock(&dev->hw);
	dev->hold_peer = !bring_bug(dev, BUG_D_DMA_IN_P2P);
	dev->hold = dev->hold_peer && !bring_odd(dev, ODD_P2P_RAM);
	mutex_unlock(&dev->hw);
	return bring_drain(dev);
}

void bring_thaw(struct bring_device *dev)
{
	mutex_lock(&dev->hw);
	dev->frozen = false;
	dev->mute = false;
	bring_irq_flush(dev);
	mutex_unlock(&dev->hw);
}

void bring_release(struct bring_device *dev)
{
	mutex_lock(&dev->hw);
	dev->hold = false;
	dev->hold_peer = false;
	mutex_unlock(&dev->hw);
	wake_up(&dev->wake);
}

/* As after power-on. Nothing may be under way. */
void bring_reset_state(struct bring_device *dev)
{
	u64 size = dev->regs.memory_size;

	lockdep_assert_held(&dev->hw);
	dev->regs = (struct bring_regs){
		.id = BRING_ID,
		.version = BRING_VERSION,
		.memory_size = size,
		.rng = BRING_RNG_SEED,
		.vectors = BRING_VECTORS,
	};
	dev->abort = false;
	memset(dev->memory, 0, size);
	memset(dev->mailbox, 0, BRING_MAILBOX_SIZE);
	bitmap_fill(dev->dirty, bring_pages(dev));
}
