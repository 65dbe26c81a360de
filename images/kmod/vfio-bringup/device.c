// SPDX-License-Identifier: GPL-2.0-only
/*
 * What every VFIO PCI device answers, whatever its migration interface is:
 * its regions and interrupts, reads, writes and mappings (linux/vfio.h).
 */
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include "bringup.h"

static long bring_info(struct bring_device *dev, void __user *arg)
{
	unsigned long minsz = offsetofend(struct vfio_device_info, num_irqs);
	struct vfio_device_info info;

	if (copy_from_user(&info, arg, minsz))
		return -EFAULT;
	if (info.argsz < minsz)
		return -EINVAL;
	info.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
	info.num_regions = VFIO_PCI_NUM_REGIONS + dev->nr_extra;
	info.num_irqs = VFIO_PCI_NUM_IRQS;
	return copy_to_user(arg, &info, minsz) ? -EFAULT : 0;
}

static int bring_extra_caps(const struct bring_extra_region *extra,
			    struct vfio_region_info *info,
			    struct vfio_info_cap *caps)
{
	struct vfio_region_info_cap_type type = {
		.header.id = VFIO_REGION_INFO_CAP_TYPE,
		.header.version = 1,
		.type = extra->type,
		.subtype = extra->subtype,
	};
	struct {
		struct vfio_region_info_cap_sparse_mmap cap;
		struct vfio_region_sparse_mmap_area area;
	} sparse = {
		.cap.header.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP,
		.cap.header.version = 1,
		.cap.nr_areas = 1,
		.area.offset = extra->map_at,
		.area.size = extra->map_size,
	};
	int ret;

	info->size = extra->size;
	info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
	ret = vfio_info_add_capability(caps, &type.header, sizeof(type));
	if (ret || !extra->map_size)
		return ret;
	info->flags |= VFIO_REGION_INFO_FLAG_MMAP;
	return vfio_info_add_capability(caps, &sparse.cap.header,
					sizeof(sparse));
}

static int bring_describe(struct bring_device *dev,
			  struct vfio_region_info *info,
			  struct vfio_info_cap *caps)
{
	const u32 rw = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;

	info->offset = VFIO_PCI_INDEX_TO_OFFSET(info->index);
	info->size = 0;
	info->flags = 0;
	if (info->index >= VFIO_PCI_NUM_REGIONS + dev->nr_extra)
		return -EINVAL;
	if (info->index >= VFIO_PCI_NUM_REGIONS)
		return bring_extra_caps(&dev->extra[info->index -
						    VFIO_PCI_NUM_REGIONS],
					info, caps);
	switch (info->index) {
	case VFIO_PCI_CONFIG_REGION_INDEX:
		info->size = BRING_CONFIG_SIZE;
		info->flags = rw;
		break;
	case VFIO_PCI_BAR0_REGION_INDEX:
		info->size = BRING_BAR0_SIZE;
		info->flags = rw;
		break;
	case VFIO_PCI_BAR2_REGION_INDEX:
		info->size = BRING_MAILBOX_SIZE;
		info->flags = rw | VFIO_REGION_INFO_FLAG_MMAP;
		break;
	}
	return 0;
}

static long bring_region_info(struct bring_device *dev, void __user *arg)
{
	unsigned long minsz = offsetofend(struct vfio_region_info, offset);
	struct vfio_info_cap caps = {};
	struct vfio_region_info info;
	long ret;

	if (copy_from_user(&info, arg, minsz))
		return -EFAULT;
	if (info.argsz < minsz)
		return -EINVAL;
	info.cap_offset = 0;
	ret = bring_describe(dev, &info, &caps);
	if (ret)
		goto free;
	if (caps.size) {
		info.flags |= VFIO_REGION_INFO_FLAG_CAPS;
		if (info.argsz < sizeof(info) + caps.size) {
			info.argsz = sizeof(info) + caps.size;
		} else {
			vfio_info_cap_shift(&caps, sizeof(info));
			if (copy_to_user(arg + sizeof(info), caps.buf,
					 caps.size))
				ret = -EFAULT;
			info.cap_offset = sizeof(info);
		}
	}
	if (!ret && copy_to_user(arg, &info, minsz))
		ret = -EFAULT;
free:
	kfree(caps.buf);
	return ret;
}

long bring_ioctl(struct vfio_device *vdev, unsigned int cmd, unsigned long arg)
{
	struct bring_device *dev = bring_of(vdev);
	void __user *user = (void __user *)arg;

	if (bring_gone())
		return -ENODEV;
	switch (cmd) {
	case VFIO_DEVICE_GET_INFO:
		return bring_info(dev, user);
	case VFIO_DEVICE_GET_REGION_INFO:
		return bring_region_info(dev, user);
	case VFIO_DEVICE_GET_IRQ_INFO:
		return bring_irq_info(dev, user);
	case VFIO_DEVICE_SET_IRQS:
		return bring_set_irqs(dev, user);
	case VFIO_DEVICE_RESET:
		return bring_fail_reset() ?: bring_reset(dev);
	}
	return -ENOTTY;
}

static ssize_t bring_rw(struct vfio_device *vdev, char __user *buf,
			size_t count, loff_t *pos, bool write)
{
	struct bring_device *dev = bring_of(vdev);
	unsigned int index = VFIO_PCI_OFFSET_TO_INDEX(*pos);
	u64 at = *pos & VFIO_PCI_OFFSET_MASK;
	ssize_t done;

	if (bring_gone())
		return -ENODEV;
	if (index == VFIO_PCI_CONFIG_REGION_INDEX)
		done = bring_config_rw(dev, buf, count, at, write);
	else if (index < VFIO_PCI_NUM_REGIONS)
		done = bring_bar_rw(dev, index, buf, count, at, write);
	else if (index < VFIO_PCI_NUM_REGIONS + dev->nr_extra)
		done = dev->ops->rw(dev, index - VFIO_PCI_NUM_REGIONS, buf,
				    count, at, write);
	else
		done = -EINVAL;
	if (done > 0)
		*pos += done;
	return done;
}

ssize_t bring_read(struct vfio_device *vdev, char __user *buf, size_t count,
		   loff_t *pos)
{
	return bring_rw(vdev, buf, count, pos, false);
}

ssize_t bring_write(struct vfio_device *vdev, const char __user *buf,
		    size_t count, loff_t *pos)
{
	return bring_rw(vdev, (char __user *)buf, count, pos, true);
}

int bring_mmap(struct vfio_device *vdev, struct vm_area_struct *vma)
{
	struct bring_device *dev = bring_of(vdev);
	loff_t pos = (loff_t)vma->vm_pgoff << PAGE_SHIFT;
	unsigned int index = VFIO_PCI_OFFSET_TO_INDEX(pos);
	u64 at = pos & VFIO_PCI_OFFSET_MASK;
	struct bring_extra_region *extra;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (index == VFIO_PCI_BAR2_REGION_INDEX)
		return remap_vmalloc_range(vma, dev->mailbox, at >> PAGE_SHIFT);
	if (index < VFIO_PCI_NUM_REGIONS ||
	    index >= VFIO_PCI_NUM_REGIONS + dev->nr_extra)
		return -EINVAL;
	extra = &dev->extra[index - VFIO_PCI_NUM_REGIONS];
	if (!extra->map_size || at < extra->map_at)
		return -EINVAL;
	return remap_vmalloc_range(vma, extra->map,
				   (at - extra->map_at) >> PAGE_SHIFT);
}

void bring_request(struct vfio_device *vdev, unsigned int count)
{
	bring_irq_request(bring_of(vdev));
}
