// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's accesses to the registers: passed on at their own width, with
 * four things done on the way.
 *  - DMA to RAM is noted before it starts (dirty-log.c).
 *  - The factorial's operand is kept: the device forgets it.
 *  - The DMA command reads back as the guest wrote it, also after transfers
 *    of our own.
 *  - What would abort QEMU or keep it busy for seconds is not passed on.
 */
#include <linux/io.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/uaccess.h>
#include "edu.h"

static void edu_write_factorial(struct edu_device *edu, u32 value)
{
	u32 status = readl(edu->io + EDU_REG_STATUS);

	/* The device ignores it too, but may end in between. */
	if (status & EDU_STATUS_COMPUTING)
		return;
	edu->operand = min_t(u32, value, EDU_FACT_ZERO);
	edu->fact_irq_due = true;
	writel(edu->operand, edu->io + EDU_REG_FACTORIAL);
}

/* The part of a transfer that lies in the device has to be within it. */
static bool edu_range_ok(u64 addr, u64 cnt)
{
	return addr >= EDU_BUF_ADDR && cnt >= 1 && cnt <= EDU_BUF_USABLE &&
	       addr - EDU_BUF_ADDR <= EDU_BUF_USABLE - cnt;
}

static void edu_write_command(struct edu_device *edu, u64 value)
{
	u64 src, dst, cnt, inner;

	/* Both as the device has it; but it may end in between. */
	if (!(value & EDU_CMD_RUN) ||
	    (readl(edu->io + EDU_REG_DMA_CMD) & EDU_CMD_RUN))
		return;
	src = readq(edu->io + EDU_REG_DMA_SRC);
	dst = readq(edu->io + EDU_REG_DMA_DST);
	cnt = readq(edu->io + EDU_REG_DMA_CNT);
	inner = value & EDU_CMD_TO_RAM ? src : dst;
	if (!edu_range_ok(inner, cnt)) {
		dev_warn_ratelimited(&edu->core.pdev->dev,
				     "DMA of %llu bytes at %#llx is outside the device: dropped, it would abort QEMU\n",
				     cnt, inner);
		return;
	}
	edu_log_dma_settle(edu, false);
	if (value & EDU_CMD_TO_RAM) {
		edu_log_dma_starts(edu, dst & edu_dma_mask, cnt);
	} else {
		edu->buf_used = true;
		if (inner - EDU_BUF_ADDR + cnt > EDU_XFER_MAX)
			edu->buf_tail = true;
	}
	edu->guest_cmd = value & ~EDU_CMD_RUN;
	writel(value, edu->io + EDU_REG_DMA_CMD);
}

static int edu_write_reg(struct edu_device *edu, u64 reg, u64 value,
			 unsigned int width)
{
	switch (reg) {
	case EDU_REG_FACTORIAL:
		if (edu->stopped)
			return -EBUSY;
		edu_write_factorial(edu, value);
		return 0;
	case EDU_REG_DMA_CMD:
		if (edu->stopped && (value & EDU_CMD_RUN))
			return -EBUSY;
		edu_write_command(edu, value);
		return 0;
	case EDU_REG_IRQ_ACK:
		if (readl(edu->io + EDU_REG_IRQ_STATUS) & EDU_IRQ_FACT)
			edu->fact_irq_due = false;
		break;
	}
	if (width == 8)
		writeq(value, edu->io + reg);
	else
		writel(value, edu->io + reg);
	return 0;
}

static u64 edu_read_reg(struct edu_device *edu, u64 reg, unsigned int width)
{
	u64 value = width == 8 ? readq(edu->io + reg) : readl(edu->io + reg);

	if (reg == EDU_REG_DMA_CMD)
		value = (value & EDU_CMD_RUN) | edu->guest_cmd;
	else if (reg == EDU_REG_IRQ_STATUS && (value & EDU_IRQ_FACT))
		edu->fact_irq_due = false;
	return value;
}

/* One access of 4 or 8 bytes, naturally aligned. */
static int edu_reg_access(struct edu_device *edu, u64 reg, u64 *value,
			  unsigned int width, bool write)
{
	int ret;

	mutex_lock(&edu->hw_mutex);
	ret = edu_hw_begin(edu);
	if (!ret) {
		if (write)
			ret = edu_write_reg(edu, reg, *value, width);
		else
			*value = edu_read_reg(edu, reg, width);
		edu_hw_end(edu);
	}
	mutex_unlock(&edu->hw_mutex);
	return ret;
}

/*
 * The device answers 4 bytes, and 8 from EDU_REG_DMA_SRC on. It ignores
 * anything else, so that reads as all ones and writes as nothing.
 */
static unsigned int edu_piece(u64 offset, size_t left)
{
	if (offset >= EDU_REG_DMA_SRC && left >= 8 && IS_ALIGNED(offset, 8))
		return 8;
	if (left >= 4 && IS_ALIGNED(offset, 4))
		return 4;
	return min_t(size_t, left, 4 - (offset & 3));
}

ssize_t edu_regs_rw(struct edu_device *edu, char __user *buf, size_t count,
		    loff_t offset, bool write)
{
	size_t done = 0;

	while (done < count) {
		unsigned int width = edu_piece(offset + done, count - done);
		u64 value = write ? 0 : ~0ULL;
		int ret = 0;

		if (write && copy_from_user(&value, buf + done, width))
			return -EFAULT;
		if (width >= 4)
			ret = edu_reg_access(edu, offset + done, &value, width,
					     write);
		if (ret)
			return ret;
		if (!write && copy_to_user(buf + done, &value, width))
			return -EFAULT;
		done += width;
	}
	return done;
}
