// SPDX-License-Identifier: GPL-2.0-only
/*
 * Interrupts: four MSI vectors and VFIO's own request to give the device
 * back, by eventfd (linux/vfio.h, VFIO_DEVICE_SET_IRQS).
 *
 * A vector that is raised stays pending until it was sent, so that none is
 * lost between a stop and the next start, nor while the user has not armed
 * his eventfds again at the destination.
 */
#include <linux/eventfd.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include "bringup.h"

void bring_irq_flush(struct bring_device *dev)
{
	unsigned int v;

	lockdep_assert_held(&dev->hw);
	if (dev->mute)
		return;
	for (v = 0; v < BRING_VECTORS; v++) {
		if (!(dev->regs.irq_pending & BIT(v)) || !dev->msi[v])
			continue;
		dev->regs.irq_pending &= ~BIT(v);
		dev->regs.irq_count[v]++;
		eventfd_signal(dev->msi[v]);
	}
}

void bring_irq_raise(struct bring_device *dev, u32 vectors)
{
	lockdep_assert_held(&dev->hw);
	dev->regs.irq_pending |= vectors & (BIT(BRING_VECTORS) - 1);
	bring_irq_flush(dev);
}

static void bring_put(struct eventfd_ctx **ctx)
{
	if (*ctx)
		eventfd_ctx_put(*ctx);
	*ctx = NULL;
}

void bring_irq_disable(struct bring_device *dev)
{
	unsigned int v;

	lockdep_assert_held(&dev->hw);
	for (v = 0; v < BRING_VECTORS; v++)
		bring_put(&dev->msi[v]);
	bring_put(&dev->request);
}

void bring_irq_request(struct bring_device *dev)
{
	mutex_lock(&dev->hw);
	if (dev->request)
		eventfd_signal(dev->request);
	mutex_unlock(&dev->hw);
}

static unsigned int bring_irq_count(unsigned int index)
{
	switch (index) {
	case VFIO_PCI_MSI_IRQ_INDEX:
		return BRING_VECTORS;
	case VFIO_PCI_REQ_IRQ_INDEX:
		return 1;
	}
	return 0;
}

long bring_irq_info(struct bring_device *dev, void __user *arg)
{
	unsigned long minsz = offsetofend(struct vfio_irq_info, count);
	struct vfio_irq_info info;

	if (copy_from_user(&info, arg, minsz))
		return -EFAULT;
	if (info.argsz < minsz || info.index >= VFIO_PCI_NUM_IRQS)
		return -EINVAL;
	info.flags = VFIO_IRQ_INFO_EVENTFD;
	if (info.index == VFIO_PCI_MSI_IRQ_INDEX)
		info.flags |= VFIO_IRQ_INFO_NORESIZE;
	info.count = bring_irq_count(info.index);
	return copy_to_user(arg, &info, minsz) ? -EFAULT : 0;
}

static int bring_arm(struct eventfd_ctx **ctx, s32 fd)
{
	struct eventfd_ctx *new = NULL;

	if (fd >= 0) {
		new = eventfd_ctx_fdget(fd);
		if (IS_ERR(new))
			return PTR_ERR(new);
	}
	bring_put(ctx);
	*ctx = new;
	return 0;
}

static void bring_trigger(struct bring_device *dev, bool msi, unsigned int n)
{
	if (msi)
		bring_irq_raise(dev, BIT(n));
	else if (dev->request)
		eventfd_signal(dev->request);
}

/* @data: what vfio_set_irqs_validate_and_prepare() found to be there. */
static long bring_set_trigger(struct bring_device *dev,
			      const struct vfio_irq_set *set, const void *data)
{
	bool msi = set->index == VFIO_PCI_MSI_IRQ_INDEX;
	struct eventfd_ctx **ctx = msi ? dev->msi : &dev->request;
	u32 type = set->flags & VFIO_IRQ_SET_DATA_TYPE_MASK;
	u32 i;
	int ret;

	if (!set->count) {
		if (type != VFIO_IRQ_SET_DATA_NONE)
			return -EINVAL;
		for (i = 0; i < bring_irq_count(set->index); i++)
			bring_put(&ctx[i]);
		return 0;
	}
	for (i = 0; i < set->count; i++) {
		unsigned int n = set->start + i;

		if (type == VFIO_IRQ_SET_DATA_EVENTFD) {
			ret = bring_arm(&ctx[n], ((const s32 *)data)[i]);
			if (ret)
				return ret;
		} else if (type == VFIO_IRQ_SET_DATA_NONE ||
			   ((const u8 *)data)[i]) {
			bring_trigger(dev, msi, n);
		}
	}
	bring_irq_flush(dev);
	return 0;
}

long bring_set_irqs(struct bring_device *dev, void __user *arg)
{
	unsigned long minsz = offsetofend(struct vfio_irq_set, count);
	struct vfio_irq_set set;
	size_t size = 0;
	void *data = NULL;
	long ret;

	if (copy_from_user(&set, arg, minsz))
		return -EFAULT;
	ret = vfio_set_irqs_validate_and_prepare(&set,
						 bring_irq_count(set.index),
						 VFIO_PCI_NUM_IRQS, &size);
	if (ret)
		return ret;
	if ((set.flags & VFIO_IRQ_SET_ACTION_TYPE_MASK) !=
	    VFIO_IRQ_SET_ACTION_TRIGGER)
		return -ENOTTY;
	if (size) {
		data = memdup_user(arg + minsz, size);
		if (IS_ERR(data))
			return PTR_ERR(data);
	}
	mutex_lock(&dev->hw);
	ret = dev->frozen && bring_bug(dev, BUG_D_SET_IRQS_STOPPED) ?
	      -EBUSY : bring_set_trigger(dev, &set, data);
	mutex_unlock(&dev->hw);
	kfree(data);
	return ret;
}
