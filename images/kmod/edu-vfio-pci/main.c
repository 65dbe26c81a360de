// SPDX-License-Identifier: GPL-2.0-only
/*
 * edu-vfio-pci as a PCI and VFIO driver: binding, opening, reset, and BAR0 of
 * which the first page is trapped and the rest may be mapped. Everything
 * else is vfio-pci-core's, INTx and MSI included.
 *
 * Bind it as any variant driver: write "edu-vfio-pci" into driver_override.
 */
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/uaccess.h>
#include "edu.h"

/*
 * The device cuts every DMA address down to its dma_mask property, and does
 * not say which it has. Too large a value here would send the device's state
 * into the guest's RAM, so the default is QEMU's.
 */
unsigned long edu_dma_mask = DMA_BIT_MASK(28);
module_param_named(dma_mask, edu_dma_mask, ulong, 0444);
MODULE_PARM_DESC(dma_mask, "dma_mask property of the edu devices (default 0xfffffff, as QEMU's)");

/*
 * A bus reset reaches us by edu_reset_done(), under the core's memory_lock,
 * which comes after state_mutex. If that is held, its holder does the work
 * when he lets go.
 */
void edu_state_unlock(struct edu_device *edu)
{
again:
	spin_lock(&edu->reset_lock);
	if (edu->deferred_reset) {
		edu->deferred_reset = false;
		spin_unlock(&edu->reset_lock);
		edu_migration_reset(edu);
		goto again;
	}
	mutex_unlock(&edu->state_mutex);
	spin_unlock(&edu->reset_lock);
}

static void edu_reset_done(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *core = dev_get_drvdata(&pdev->dev);
	struct edu_device *edu = container_of(core, struct edu_device, core);

	spin_lock(&edu->reset_lock);
	edu->deferred_reset = true;
	if (!mutex_trylock(&edu->state_mutex)) {
		spin_unlock(&edu->reset_lock);
		return;
	}
	spin_unlock(&edu->reset_lock);
	edu_state_unlock(edu);
}

static int edu_reset(struct edu_device *edu)
{
	int ret;

	mutex_lock(&edu->state_mutex);
	mutex_lock(&edu->hw_mutex);
	ret = edu_hw_reset(edu, true);
	mutex_unlock(&edu->hw_mutex);
	if (!ret)
		edu_migration_reset(edu);
	edu_state_unlock(edu);
	return ret;
}

static int edu_open_device(struct vfio_device *vdev)
{
	struct edu_device *edu = edu_of(vdev);
	int ret;

	ret = vfio_pci_core_enable(&edu->core);
	if (ret)
		return ret;
	ret = vfio_pci_core_setup_barmap(&edu->core, 0);
	if (ret)
		goto disable;
	edu->io = edu->core.barmap[0];

	mutex_lock(&edu->state_mutex);
	mutex_lock(&edu->hw_mutex);
	edu->inflight = false;
	/* No transfer here: a device opened by iommufd is not attached yet. */
	ret = readl(edu->io + EDU_REG_ID) == EDU_ID ?
	      edu_hw_reset(edu, false) : -ENODEV;
	mutex_unlock(&edu->hw_mutex);
	edu_migration_reset(edu);
	edu_state_unlock(edu);
	if (ret)
		goto disable;
	vfio_pci_core_finish_enable(&edu->core);
	return 0;

disable:
	vfio_pci_core_disable(&edu->core);
	return ret;
}

/* Leaves nothing of this user: no transfer, no byte in the buffer. */
static void edu_close_device(struct vfio_device *vdev)
{
	struct edu_device *edu = edu_of(vdev);

	mutex_lock(&edu->state_mutex);
	edu_stream_disable(&edu->saving);
	edu_stream_disable(&edu->resuming);
	mutex_lock(&edu->hw_mutex);
	edu_log_disable(edu);
	if (edu_hw_reset(edu, true))
		pci_warn(edu->core.pdev, "could not be reset at close\n");
	mutex_unlock(&edu->hw_mutex);
	edu_state_unlock(edu);
	vfio_pci_core_close_device(vdev);
}

/*
 * BAR0: the page with the registers is trapped, so that DMA commands are
 * seen; the rest may be mapped (VFIO_REGION_INFO_CAP_SPARSE_MMAP).
 */
static long edu_region_info(struct edu_device *edu,
			    struct vfio_region_info __user *arg)
{
	struct {
		struct vfio_region_info info;
		struct vfio_region_info_cap_sparse_mmap cap;
		struct vfio_region_sparse_mmap_area area;
	} out = {};
	unsigned long minsz = offsetofend(struct vfio_region_info, offset);
	u64 size = pci_resource_len(edu->core.pdev, 0);
	u32 room;

	if (copy_from_user(&out.info, arg, minsz))
		return -EFAULT;
	room = out.info.argsz;
	if (room < minsz)
		return -EINVAL;
	out.info = (struct vfio_region_info){
		.argsz = sizeof(out),
		.flags = VFIO_REGION_INFO_FLAG_READ |
			 VFIO_REGION_INFO_FLAG_WRITE |
			 VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS,
		.size = size,
		.offset = VFIO_PCI_INDEX_TO_OFFSET(VFIO_PCI_BAR0_REGION_INDEX),
	};
	if (room < sizeof(out))
		return copy_to_user(arg, &out.info, minsz) ? -EFAULT : 0;
	out.info.cap_offset = offsetof(typeof(out), cap);
	out.cap.header.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP;
	out.cap.header.version = 1;
	out.cap.nr_areas = 1;
	out.area.offset = EDU_REGS_SIZE;
	out.area.size = size - EDU_REGS_SIZE;
	return copy_to_user(arg, &out, sizeof(out)) ? -EFAULT : 0;
}

static long edu_ioctl(struct vfio_device *vdev, unsigned int cmd,
		      unsigned long arg)
{
	struct edu_device *edu = edu_of(vdev);
	struct vfio_device_info __user *info = (void __user *)arg;
	struct vfio_region_info __user *region = (void __user *)arg;
	u32 value;
	long ret;

	switch (cmd) {
	case VFIO_DEVICE_RESET:
		return edu_reset(edu);
	case VFIO_DEVICE_GET_REGION_INFO:
		if (get_user(value, &region->index))
			return -EFAULT;
		if (value == VFIO_PCI_BAR0_REGION_INDEX)
			return edu_region_info(edu, region);
		break;
	case VFIO_DEVICE_GET_INFO:
		/* The PCI core knows no reset of edu. */
		ret = vfio_pci_core_ioctl(vdev, cmd, arg);
		if (ret)
			return ret;
		if (get_user(value, &info->flags) ||
		    put_user(value | VFIO_DEVICE_FLAGS_RESET, &info->flags))
			return -EFAULT;
		return 0;
	}
	return vfio_pci_core_ioctl(vdev, cmd, arg);
}

/* Does an access begin in the registers? Then *offset is where in them. */
static bool edu_in_regs(loff_t pos, loff_t *offset)
{
	*offset = pos & VFIO_PCI_OFFSET_MASK;
	return VFIO_PCI_OFFSET_TO_INDEX(pos) == VFIO_PCI_BAR0_REGION_INDEX &&
	       *offset < EDU_REGS_SIZE;
}

/* One that goes beyond the registers is cut there: a short read or write. */
static ssize_t edu_read(struct vfio_device *vdev, char __user *buf,
			size_t count, loff_t *pos)
{
	loff_t offset;
	ssize_t done;

	if (!edu_in_regs(*pos, &offset))
		return vfio_pci_core_read(vdev, buf, count, pos);
	count = min_t(size_t, count, EDU_REGS_SIZE - offset);
	done = edu_regs_rw(edu_of(vdev), buf, count, offset, false);
	if (done > 0)
		*pos += done;
	return done;
}

static ssize_t edu_write(struct vfio_device *vdev, const char __user *buf,
			 size_t count, loff_t *pos)
{
	loff_t offset;
	ssize_t done;

	if (!edu_in_regs(*pos, &offset))
		return vfio_pci_core_write(vdev, buf, count, pos);
	count = min_t(size_t, count, EDU_REGS_SIZE - offset);
	done = edu_regs_rw(edu_of(vdev), (char __user *)buf, count, offset,
			   true);
	if (done > 0)
		*pos += done;
	return done;
}

static int edu_mmap(struct vfio_device *vdev, struct vm_area_struct *vma)
{
	loff_t offset;

	if (edu_in_regs((loff_t)vma->vm_pgoff << PAGE_SHIFT, &offset))
		return -EINVAL;
	return vfio_pci_core_mmap(vdev, vma);
}

static int edu_init(struct vfio_device *vdev)
{
	struct edu_device *edu = edu_of(vdev);

	mutex_init(&edu->state_mutex);
	mutex_init(&edu->hw_mutex);
	spin_lock_init(&edu->reset_lock);
	xa_init(&edu->log);
	vdev->migration_flags = VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P |
				VFIO_MIGRATION_PRE_COPY;
	vdev->mig_ops = &edu_migration_ops;
	vdev->log_ops = &edu_log_ops;
	return vfio_pci_core_init_dev(vdev);
}

static void edu_release(struct vfio_device *vdev)
{
	struct edu_device *edu = edu_of(vdev);

	mutex_destroy(&edu->hw_mutex);
	mutex_destroy(&edu->state_mutex);
	vfio_pci_core_release_dev(vdev);
}

static const struct vfio_device_ops edu_vfio_ops = {
	.name = "edu-vfio-pci",
	.init = edu_init,
	.release = edu_release,
	.open_device = edu_open_device,
	.close_device = edu_close_device,
	.ioctl = edu_ioctl,
	.device_feature = vfio_pci_core_ioctl_feature,
	.read = edu_read,
	.write = edu_write,
	.mmap = edu_mmap,
	.request = vfio_pci_core_request,
	.match = vfio_pci_core_match,
	.bind_iommufd = vfio_iommufd_physical_bind,
	.unbind_iommufd = vfio_iommufd_physical_unbind,
	.attach_ioas = vfio_iommufd_physical_attach_ioas,
	.detach_ioas = vfio_iommufd_physical_detach_ioas,
};

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct edu_device *edu;
	int ret;

	if (pci_resource_len(pdev, 0) <= EDU_REGS_SIZE)
		return -ENODEV;
	edu = vfio_alloc_device(edu_device, core.vdev, &pdev->dev,
				&edu_vfio_ops);
	if (IS_ERR(edu))
		return PTR_ERR(edu);
	dev_set_drvdata(&pdev->dev, &edu->core);
	ret = vfio_pci_core_register_device(&edu->core);
	if (ret)
		vfio_put_device(&edu->core.vdev);
	return ret;
}

static void edu_remove(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *core = dev_get_drvdata(&pdev->dev);

	vfio_pci_core_unregister_device(core);
	vfio_put_device(&core->vdev);
}

static const struct pci_device_id edu_ids[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(0x1234, 0x11e8) },
	{}
};
MODULE_DEVICE_TABLE(pci, edu_ids);

static const struct pci_error_handlers edu_err_handlers = {
	.reset_done = edu_reset_done,
	.error_detected = vfio_pci_core_aer_err_detected,
};

static struct pci_driver edu_driver = {
	.name = "edu-vfio-pci",
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
	.err_handler = &edu_err_handlers,
	/* VFIO decides who does DMA. */
	.driver_managed_dma = true,
};
module_pci_driver(edu_driver);

MODULE_LICENSE("GPL");
MODULE_AUTHOR("The Ferry authors");
MODULE_DESCRIPTION("VFIO variant driver that migrates QEMU's edu device");
MODULE_IMPORT_NS(IOMMUFD);
