// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device's state: waiting until it is idle, reading it, loading it, and
 * resetting a device that knows no reset. All under hw_mutex.
 */
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/iopoll.h>
#include <linux/pci.h>
#include "edu.h"

/* A transfer takes 100 ms; the host of the emulation may be busy. */
#define EDU_IDLE_LIMIT_US	(5 * USEC_PER_SEC)
/* From COMPUTING going off to the interrupt: some microseconds. */
#define EDU_FACT_IRQ_LIMIT_US	(200 * USEC_PER_MSEC)

/*
 * The registers answer only while the guest has memory decode on. Keeps it
 * so until edu_hw_end(): whoever writes PCI_COMMAND takes memory_lock.
 */
int edu_hw_begin(struct edu_device *edu)
{
	struct pci_dev *pdev = edu->core.pdev;
	u16 command;

	lockdep_assert_held(&edu->hw_mutex);
	down_read(&edu->core.memory_lock);
	pci_read_config_word(pdev, PCI_COMMAND, &command);
	if (pdev->current_state < PCI_D3hot && (command & PCI_COMMAND_MEMORY))
		return 0;
	up_read(&edu->core.memory_lock);
	return -EIO;
}

void edu_hw_end(struct edu_device *edu)
{
	up_read(&edu->core.memory_lock);
}

static bool edu_busy(struct edu_device *edu)
{
	return (readl(edu->io + EDU_REG_DMA_CMD) & EDU_CMD_RUN) ||
	       (readl(edu->io + EDU_REG_STATUS) & EDU_STATUS_COMPUTING);
}

int edu_hw_wait_idle(struct edu_device *edu)
{
	bool busy;

	return read_poll_timeout(edu_busy, busy, !busy, 1000,
				 EDU_IDLE_LIMIT_US, false, edu);
}

/*
 * The factorial's interrupt comes from a thread, after COMPUTING went off.
 * If it were raised after the status was saved, it would be lost.
 */
static void edu_wait_fact_irq(struct edu_device *edu)
{
	u32 irqs;

	if (!edu->fact_irq_due ||
	    !(readl(edu->io + EDU_REG_STATUS) & EDU_STATUS_IRQFACT))
		return;
	if (read_poll_timeout(readl, irqs, irqs & EDU_IRQ_FACT, 500,
			      EDU_FACT_IRQ_LIMIT_US, false,
			      edu->io + EDU_REG_IRQ_STATUS))
		pci_dbg(edu->core.pdev, "no interrupt of the factorial\n");
	edu->fact_irq_due = false;
}

/* Returns with nothing in progress, and nothing that can be started. */
int edu_hw_quiesce(struct edu_device *edu)
{
	int ret;

	edu->stopped = true;
	ret = edu_hw_begin(edu);
	if (ret) {
		pci_err(edu->core.pdev,
			"cannot be stopped with memory decode off\n");
		goto running;
	}
	ret = edu_hw_wait_idle(edu);
	if (!ret)
		edu_wait_fact_irq(edu);
	edu_hw_end(edu);
	if (!ret)
		return 0;
	pci_err(edu->core.pdev, "did not become idle\n");
running:
	edu->stopped = false;
	return ret;
}

int edu_hw_read_regs(struct edu_device *edu, struct edu_regs *regs)
{
	int ret = edu_hw_begin(edu);

	if (ret)
		return ret;
	*regs = (struct edu_regs){
		.src = readq(edu->io + EDU_REG_DMA_SRC),
		.dst = readq(edu->io + EDU_REG_DMA_DST),
		.cnt = readq(edu->io + EDU_REG_DMA_CNT),
		.cmd = edu->guest_cmd,
		.liveness = readl(edu->io + EDU_REG_LIVENESS),
		.operand = edu->operand,
		.irqfact = readl(edu->io + EDU_REG_STATUS) & EDU_STATUS_IRQFACT,
	};
	edu_hw_end(edu);
	return 0;
}

static u16 edu_set_command(struct edu_device *edu, u16 set, u16 clear)
{
	struct pci_dev *pdev = edu->core.pdev;
	u16 old;

	pci_read_config_word(pdev, PCI_COMMAND, &old);
	pci_write_config_word(pdev, PCI_COMMAND, (old & ~clear) | set);
	return old;
}

static void edu_write_dma_regs(struct edu_device *edu,
			       const struct edu_regs *regs)
{
	writeq(regs->src, edu->io + EDU_REG_DMA_SRC);
	writeq(regs->dst, edu->io + EDU_REG_DMA_DST);
	writeq(regs->cnt, edu->io + EDU_REG_DMA_CNT);
	edu->guest_cmd = regs->cmd;
}

/*
 * Saves what only a stopped device gives. Our own transfer goes through the
 * guest's DMA registers, so they are put back: the migration may be
 * cancelled. vfio-pci switches bus mastering off at open and the guest may
 * not have switched it on, so it is on for us alone.
 */
int edu_hw_save(struct edu_device *edu, struct edu_inner *inner)
{
	struct edu_regs regs;
	u16 command;
	int ret;

	ret = edu_hw_read_regs(edu, &regs);
	if (ret)
		return ret;
	ret = edu_hw_begin(edu);
	if (ret)
		return ret;
	inner->irq_status = readl(edu->io + EDU_REG_IRQ_STATUS);
	inner->factorial = readl(edu->io + EDU_REG_FACTORIAL);
	inner->buf_tail = edu->buf_tail;
	command = edu_set_command(edu, PCI_COMMAND_MASTER, 0);
	ret = edu_buffer_get(edu, inner->buf, edu->buf_tail);
	pci_write_config_word(edu->core.pdev, PCI_COMMAND, command);
	/* A device that is still busy ignores this; it is in ERROR then. */
	edu_write_dma_regs(edu, &regs);
	edu_hw_end(edu);
	return ret;
}

/* The factorial's result can only be computed. Without an interrupt. */
static void edu_load_factorial(struct edu_device *edu, u32 operand)
{
	writel(0, edu->io + EDU_REG_STATUS);
	writel(operand, edu->io + EDU_REG_FACTORIAL);
	edu->operand = operand;
	edu->fact_irq_due = false;
}

/*
 * Makes the interrupt status what it was. Each raising sends an MSI when MSI
 * is on, but the guest has had that one already: with bus mastering off the
 * message goes nowhere. INTx is a level, which has to be there again, and
 * does not need bus mastering.
 */
static void edu_load_irqs(struct edu_device *edu, u32 irqfact, u32 irq_status)
{
	edu_set_command(edu, 0, PCI_COMMAND_MASTER);
	writel(irqfact, edu->io + EDU_REG_STATUS);
	writel(~0, edu->io + EDU_REG_IRQ_ACK);
	if (irq_status)
		writel(irq_status, edu->io + EDU_REG_IRQ_RAISE);
}

/* PCI_COMMAND has memory decode on; the caller puts it back afterwards. */
static int edu_load_all(struct edu_device *edu, const struct edu_regs *regs,
			const struct edu_inner *inner, bool with_buffer)
{
	int ret;

	ret = edu_hw_wait_idle(edu);
	if (ret)
		return ret;
	/* The wait for the buffer also lets the factorial's thread finish. */
	edu_load_factorial(edu, regs->operand);
	if (with_buffer) {
		edu_set_command(edu, PCI_COMMAND_MASTER, 0);
		ret = edu_buffer_put(edu, inner->buf,
				     inner->buf_tail || edu->buf_tail);
		if (ret)
			return ret;
		edu->buf_used = true;
		edu->buf_tail = inner->buf_tail;
	} else {
		msleep(20);
	}
	ret = edu_hw_wait_idle(edu);
	if (ret)
		return ret;
	if (readl(edu->io + EDU_REG_FACTORIAL) != inner->factorial) {
		pci_err(edu->core.pdev, "factorial of %u is not %#x\n",
			regs->operand, inner->factorial);
		return -EIO;
	}
	writel(~regs->liveness, edu->io + EDU_REG_LIVENESS);
	edu_write_dma_regs(edu, regs);
	edu_load_irqs(edu, regs->irqfact, inner->irq_status);
	return 0;
}

int edu_hw_load(struct edu_device *edu, const struct edu_regs *regs,
		const struct edu_inner *inner)
{
	u16 command;
	int ret;

	ret = edu_hw_begin(edu);
	if (ret) {
		pci_err(edu->core.pdev,
			"cannot be loaded with memory decode off\n");
		return ret;
	}
	pci_read_config_word(edu->core.pdev, PCI_COMMAND, &command);
	ret = edu_load_all(edu, regs, inner, true);
	pci_write_config_word(edu->core.pdev, PCI_COMMAND, command);
	edu_hw_end(edu);
	return ret;
}

/*
 * What a function-level reset would do, which edu has not: everything as
 * after power-on, PCI_COMMAND as it was (the PCI core restores it after a
 * reset too). Works with memory decode off. A transfer that runs is waited
 * for, since nothing stops it. The buffer is cleared if a user wrote it:
 * that takes a transfer, so the device has to be attached to a domain.
 */
int edu_hw_reset(struct edu_device *edu, bool with_buffer)
{
	static const struct edu_regs regs = { .operand = EDU_FACT_ZERO };
	struct edu_inner *inner;
	u16 command;
	int ret;

	lockdep_assert_held(&edu->hw_mutex);
	inner = kzalloc(sizeof(*inner), GFP_KERNEL);
	if (!inner)
		return -ENOMEM;
	down_write(&edu->core.memory_lock);
	command = edu_set_command(edu, PCI_COMMAND_MEMORY, 0);
	ret = edu_load_all(edu, &regs, inner, with_buffer && edu->buf_used);
	pci_write_config_word(edu->core.pdev, PCI_COMMAND, command);
	up_write(&edu->core.memory_lock);
	if (!ret && with_buffer)
		edu->buf_used = false;
	kfree(inner);
	edu->stopped = false;
	return ret;
}
