// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a PCI device shows: config space (PCI 3.0, 6.1; MSI 6.8.1), BAR0 with
 * the registers and the memory window, BAR2 with the mailbox.
 * All of it answers in every state; a stopped device ignores writes to its
 * BAR0, so that a user who breaks the rules changes nothing.
 */
#include <linux/pci_regs.h>
#include <linux/uaccess.h>
#include <linux/unaligned.h>
#include "bringup.h"

#define MSI_AT	0x40

void bring_config_init(struct bring_device *dev)
{
	u8 *c = dev->config;

	memset(c, 0, sizeof(dev->config));
	put_unaligned_le16(BRING_VENDOR, c + PCI_VENDOR_ID);
	put_unaligned_le16(BRING_DEVICE, c + PCI_DEVICE_ID);
	put_unaligned_le16(PCI_STATUS_CAP_LIST, c + PCI_STATUS);
	c[PCI_REVISION_ID] = 1;
	c[PCI_CLASS_DEVICE + 1] = 0xff;	/* fits no class */
	put_unaligned_le16(BRING_VENDOR, c + PCI_SUBSYSTEM_VENDOR_ID);
	put_unaligned_le16(BRING_DEVICE, c + PCI_SUBSYSTEM_ID);
	c[PCI_CAPABILITY_LIST] = MSI_AT;
	c[MSI_AT] = PCI_CAP_ID_MSI;
	put_unaligned_le16(PCI_MSI_FLAGS_64BIT | ilog2(BRING_VECTORS) << 1,
			   c + MSI_AT + PCI_MSI_FLAGS);
}

bool bring_is_master(struct bring_device *dev)
{
	return READ_ONCE(dev->config[PCI_COMMAND]) & PCI_COMMAND_MASTER;
}

/* Which bits of a byte of config space may be written. */
static u8 bring_config_mask(u64 at)
{
	switch (at) {
	case PCI_COMMAND:
		return PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	case PCI_COMMAND + 1:
		return PCI_COMMAND_INTX_DISABLE >> 8;
	case PCI_CACHE_LINE_SIZE:
	case PCI_LATENCY_TIMER:
	case PCI_INTERRUPT_LINE:
		return 0xff;
	/* The address bits that the size of a BAR leaves. */
	case PCI_BASE_ADDRESS_0 + 2:
	case PCI_BASE_ADDRESS_0 + 3:
	case PCI_BASE_ADDRESS_2 + 2:
	case PCI_BASE_ADDRESS_2 + 3:
		return 0xff;
	case PCI_BASE_ADDRESS_2 + 1:
		return 0xf0;
	case MSI_AT + PCI_MSI_FLAGS:
		return PCI_MSI_FLAGS_QSIZE | PCI_MSI_FLAGS_ENABLE;
	case MSI_AT + PCI_MSI_ADDRESS_LO:
		return 0xfc;
	case MSI_AT + PCI_MSI_ADDRESS_LO + 1 ... MSI_AT + PCI_MSI_DATA_64 + 1:
		return 0xff;
	}
	return 0;
}

ssize_t bring_config_rw(struct bring_device *dev, char __user *buf,
			size_t count, u64 at, bool write)
{
	u8 bytes[BRING_CONFIG_SIZE];
	size_t i;

	if (at >= BRING_CONFIG_SIZE)
		return -EINVAL;
	if (dev->frozen && bring_bug(dev, BUG_D_CONFIG_STOPPED))
		return -EIO;
	count = min_t(size_t, count, BRING_CONFIG_SIZE - at);
	if (write && copy_from_user(bytes, buf, count))
		return -EFAULT;
	mutex_lock(&dev->hw);
	for (i = 0; i < count; i++) {
		u8 mask = bring_config_mask(at + i);

		if (write)
			dev->config[at + i] = (dev->config[at + i] & ~mask) |
					      (bytes[i] & mask);
		else
			bytes[i] = dev->config[at + i];
	}
	mutex_unlock(&dev->hw);
	return !write && copy_to_user(buf, bytes, count) ? -EFAULT : count;
}

/* The 32-bit half of a register that is plain to write; NULL: it is not. */
static u32 *bring_plain_register(struct bring_device *dev, u64 at)
{
	struct bring_regs *r = &dev->regs;
	bool dma = at >= offsetof(struct bring_regs, dma_iova);

	/* A command that is under way keeps its arguments. */
	if (dma && r->dma_status & BRING_BUSY)
		return NULL;
	switch (at) {
	case offsetof(struct bring_regs, scratch):
	case offsetof(struct bring_regs, scratch) + 4:
	case offsetof(struct bring_regs, window):
	case offsetof(struct bring_regs, window) + 4:
	case offsetof(struct bring_regs, dma_iova):
	case offsetof(struct bring_regs, dma_iova) + 4:
	case offsetof(struct bring_regs, dma_mem):
	case offsetof(struct bring_regs, dma_mem) + 4:
	case offsetof(struct bring_regs, dma_len):
	case offsetof(struct bring_regs, dma_seed):
	case offsetof(struct bring_regs, dma_delay):
		return (u32 *)((u8 *)r + at);
	}
	return NULL;
}

static void bring_register_write(struct bring_device *dev, u64 at, u32 value)
{
	u32 *plain = bring_plain_register(dev, at);

	if (plain)
		*plain = value;
	switch (at) {
	case offsetof(struct bring_regs, window):
		dev->regs.window &= PAGE_MASK;
		break;
	case offsetof(struct bring_regs, dma_delay):
		dev->regs.dma_delay = min_t(u32, dev->regs.dma_delay,
					    BRING_DELAY_MAX);
		break;
	case offsetof(struct bring_regs, mutate):
		bring_mutate(dev, value);
		break;
	case offsetof(struct bring_regs, dma_cmd):
		bring_dma_command(dev, value);
		break;
	case offsetof(struct bring_regs, irq_raise):
		bring_irq_raise(dev, value);
		break;
	}
}

/* Bytes of device memory that the window shows from @at of BAR0 on. */
static size_t bring_window(struct bring_device *dev, u64 at, size_t count,
			   u64 *where)
{
	u64 size = dev->regs.memory_size;

	*where = dev->regs.window + at - BRING_WINDOW_AT;
	if (*where >= size || *where < dev->regs.window)
		return 0;
	return min_t(u64, count, size - *where);
}

static void bring_bar0_read(struct bring_device *dev, u8 *bytes, size_t count,
			    u64 at)
{
	u64 where;
	size_t n;

	memset(bytes, 0, count);
	if (at >= BRING_WINDOW_AT) {
		n = bring_window(dev, at, count, &where);
		memcpy(bytes, dev->memory + where, n);
	} else if (at < sizeof(dev->regs)) {
		const u64 hash = offsetof(struct bring_regs, hash);

		n = min_t(size_t, count, sizeof(dev->regs) - at);
		/* Costs a walk over all memory. */
		if (at < hash + 8 && at + n > hash)
			dev->regs.hash = bring_hash(dev);
		memcpy(bytes, (u8 *)&dev->regs + at, n);
		dev->regs.hash = 0;
	}
}

static void bring_bar0_write(struct bring_device *dev, const u8 *bytes,
			     size_t count, u64 at)
{
	u64 where;
	size_t n;

	if (dev->frozen)
		return;
	if (at >= BRING_WINDOW_AT) {
		n = bring_window(dev, at, count, &where);
		memcpy(dev->memory + where, bytes, n);
		if (n && !bring_bug(dev, BUG_D_WINDOW_NOT_DIRTY))
			bring_memory_written(dev, where, n);
		return;
	}
	if (at % 4 || (count != 4 && count != 8))
		return;
	for (n = 0; n < count; n += 4)
		bring_register_write(dev, at + n, get_unaligned_le32(bytes + n));
}

/* At most a page; what begins in the registers does not reach the window. */
static ssize_t bring_bar0_rw(struct bring_device *dev, char __user *buf,
			     size_t count, u64 at, bool write)
{
	u64 end = at < BRING_WINDOW_AT ? BRING_WINDOW_AT : BRING_BAR0_SIZE;
	ssize_t ret;
	u8 *bytes;

	if (at >= BRING_BAR0_SIZE)
		return -EINVAL;
	count = min3(count, (size_t)(end - at), (size_t)PAGE_SIZE);
	bytes = kmalloc(count, GFP_KERNEL);
	if (!bytes)
		return -ENOMEM;
	ret = -EFAULT;
	if (write && copy_from_user(bytes, buf, count))
		goto free;
	mutex_lock(&dev->hw);
	if (write)
		bring_bar0_write(dev, bytes, count, at);
	else
		bring_bar0_read(dev, bytes, count, at);
	mutex_unlock(&dev->hw);
	if (write || !copy_to_user(buf, bytes, count))
		ret = count;
free:
	kfree(bytes);
	return ret;
}

/* The mailbox is mapped elsewhere too: it is nobody's to lock. */
static ssize_t bring_bar2_rw(struct bring_device *dev, char __user *buf,
			     size_t count, u64 at, bool write)
{
	if (at >= BRING_MAILBOX_SIZE)
		return -EINVAL;
	count = min_t(size_t, count, BRING_MAILBOX_SIZE - at);
	if (write ? copy_from_user(dev->mailbox + at, buf, count) :
		    copy_to_user(buf, dev->mailbox + at, count))
		return -EFAULT;
	return count;
}

ssize_t bring_bar_rw(struct bring_device *dev, unsigned int bar,
		     char __user *buf, size_t count, u64 at, bool write)
{
	if (!count)
		return 0;
	if (bar == VFIO_PCI_BAR0_REGION_INDEX)
		return bring_bar0_rw(dev, buf, count, at, write);
	if (bar == VFIO_PCI_BAR2_REGION_INDEX)
		return bring_bar2_rw(dev, buf, count, at, write);
	return -EINVAL;
}
