// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's side of vfio-bringup (images/kmod/vfio-bringup/README.md): what
 * a program in user space cannot have by itself, MSI and memory for DMA.
 * uio_pci_generic knows INTx only, and the device has none.
 *
 *   /dev/bringup   read: struct bringup_now; poll: an interrupt came since
 *                  mmap: BRINGUP_BUFFER bytes for DMA, at bringup_now.address
 *
 * The registers are sysfs's resource0. For the workload (workload/bringup.c).
 */
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/poll.h>
#include <linux/uaccess.h>

#define BRINGUP_BUFFER	(2 << 20)
#define BRINGUP_VECTORS	4

struct bringup_now {
	u64 address;
	u64 irqs[BRINGUP_VECTORS];
};

struct bringup {
	struct pci_dev *pdev;
	struct miscdevice misc;
	wait_queue_head_t wake;
	atomic64_t irqs[BRINGUP_VECTORS];
	atomic64_t all, seen;
	void *buffer;
	dma_addr_t address;
};

static irqreturn_t bringup_interrupt(int irq, void *data)
{
	struct bringup *b = data;
	int v = irq - pci_irq_vector(b->pdev, 0);

	/* MSI vectors of one device are consecutive. */
	if (v < 0 || v >= BRINGUP_VECTORS)
		return IRQ_NONE;
	atomic64_inc(&b->irqs[v]);
	atomic64_inc(&b->all);
	wake_up(&b->wake);
	return IRQ_HANDLED;
}

static struct bringup *bringup_of(struct file *filp)
{
	return container_of(filp->private_data, struct bringup, misc);
}

static ssize_t bringup_read(struct file *filp, char __user *buf, size_t count,
			    loff_t *pos)
{
	struct bringup *b = bringup_of(filp);
	struct bringup_now now = { .address = b->address };
	int v;

	if (count < sizeof(now))
		return -EINVAL;
	atomic64_set(&b->seen, atomic64_read(&b->all));
	for (v = 0; v < BRINGUP_VECTORS; v++)
		now.irqs[v] = atomic64_read(&b->irqs[v]);
	return copy_to_user(buf, &now, sizeof(now)) ? -EFAULT : sizeof(now);
}

static __poll_t bringup_poll(struct file *filp, struct poll_table_struct *wait)
{
	struct bringup *b = bringup_of(filp);

	poll_wait(filp, &b->wake, wait);
	return atomic64_read(&b->all) != atomic64_read(&b->seen) ?
	       EPOLLIN | EPOLLRDNORM : 0;
}

static int bringup_mmap(struct file *filp, struct vm_area_struct *vma)
{
	struct bringup *b = bringup_of(filp);

	return dma_mmap_coherent(&b->pdev->dev, vma, b->buffer, b->address,
				 BRINGUP_BUFFER);
}

static const struct file_operations bringup_fops = {
	.owner = THIS_MODULE,
	.read = bringup_read,
	.poll = bringup_poll,
	.mmap = bringup_mmap,
};

static int bringup_vectors(struct bringup *b)
{
	int v, ret;

	ret = pci_alloc_irq_vectors(b->pdev, BRINGUP_VECTORS, BRINGUP_VECTORS,
				    PCI_IRQ_MSI);
	/* A guest without interrupt remapping has one MSI a device. */
	if (ret < 0)
		ret = pci_alloc_irq_vectors(b->pdev, 1, 1, PCI_IRQ_MSI);
	if (ret < 0)
		return ret;
	for (v = 0; v < ret; v++) {
		int error = devm_request_irq(&b->pdev->dev,
					     pci_irq_vector(b->pdev, v),
					     bringup_interrupt, 0, "bringup", b);
		if (error)
			return error;
	}
	return 0;
}

static int bringup_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct bringup *b;
	int ret;

	b = devm_kzalloc(&pdev->dev, sizeof(*b), GFP_KERNEL);
	if (!b)
		return -ENOMEM;
	b->pdev = pdev;
	init_waitqueue_head(&b->wake);
	ret = pcim_enable_device(pdev);
	if (!ret)
		ret = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (ret)
		return ret;
	pci_set_master(pdev);
	b->buffer = dmam_alloc_coherent(&pdev->dev, BRINGUP_BUFFER, &b->address,
					GFP_KERNEL);
	if (!b->buffer)
		return -ENOMEM;
	ret = bringup_vectors(b);
	if (ret)
		return ret;
	b->misc.minor = MISC_DYNAMIC_MINOR;
	b->misc.name = "bringup";
	b->misc.fops = &bringup_fops;
	pci_set_drvdata(pdev, b);
	return misc_register(&b->misc);
}

static const struct pci_device_id bringup_ids[] = {
	{ PCI_DEVICE(0x1234, 0xfe01) },
	{}
};
MODULE_DEVICE_TABLE(pci, bringup_ids);

/* It stays until the guest ends. */
static struct pci_driver bringup_driver = {
	.name = "bringup-guest",
	.id_table = bringup_ids,
	.probe = bringup_probe,
	.driver.suppress_bind_attrs = true,
};

static int __init bringup_init(void)
{
	return pci_register_driver(&bringup_driver);
}
module_init(bringup_init);

MODULE_LICENSE("GPL");
MODULE_AUTHOR("The Ferry authors");
MODULE_DESCRIPTION("Guest driver of vfio-bringup");
