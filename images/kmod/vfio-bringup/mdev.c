// SPDX-License-Identifier: GPL-2.0-only
/*
 * The module as a driver of mdevs: the parent that they are made under, and
 * the life of one from its making to its end.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include "bringup.h"

static int bring_init(struct vfio_device *vdev)
{
	struct bring_device *dev = bring_of(vdev);
	int ret = bring_take_instance();

	if (ret < 0)
		return ret;
	dev->instance = ret;
	mutex_init(&dev->state_mutex);
	mutex_init(&dev->hw);
	mutex_init(&dev->log_lock);
	xa_init(&dev->log);
	init_waitqueue_head(&dev->wake);
	ret = bring_configure(dev);
	if (ret)
		goto instance;
	ret = -ENOMEM;
	dev->memory = vzalloc(dev->regs.memory_size);
	dev->mailbox = vmalloc_user(BRING_MAILBOX_SIZE);
	dev->dirty = bitmap_zalloc(bring_pages(dev), GFP_KERNEL);
	if (!dev->memory || !dev->mailbox || !dev->dirty)
		goto memory;
	bring_config_init(dev);
	ret = dev->ops->init(dev);
	if (!ret)
		return 0;
memory:
	bitmap_free(dev->dirty);
	vfree(dev->mailbox);
	vfree(dev->memory);
instance:
	bring_put_instance(dev);
	return ret;
}

static void bring_release_dev(struct vfio_device *vdev)
{
	struct bring_device *dev = bring_of(vdev);

	if (dev->ops->release)
		dev->ops->release(dev);
	bitmap_free(dev->dirty);
	vfree(dev->mailbox);
	vfree(dev->memory);
	mutex_destroy(&dev->log_lock);
	mutex_destroy(&dev->hw);
	mutex_destroy(&dev->state_mutex);
	bring_put_instance(dev);
}

/* Under state_mutex, with no chunk under way. */
static void bring_restart(struct bring_device *dev, bool reset)
{
	mutex_lock(&dev->hw);
	if (reset || !bring_bug(dev, BUG_D_REOPEN_DATA))
		bring_reset_state(dev);
	if (reset && bring_hard_reset()) {
		bring_config_init(dev);
		bring_irq_disable(dev);
	}
	mutex_unlock(&dev->hw);
	dev->ops->reset(dev, reset);
	bring_thaw(dev);
	bring_release(dev);
}

static int bring_open(struct vfio_device *vdev)
{
	struct bring_device *dev = bring_of(vdev);

	bring_take_faults(dev);
	mutex_lock(&dev->state_mutex);
	bring_config_init(dev);
	bring_restart(dev, false);
	mutex_unlock(&dev->state_mutex);
	return bring_engine_start(dev);
}

/* Leaves nothing of this user: no DMA, no byte, no eventfd. */
static void bring_close(struct vfio_device *vdev)
{
	struct bring_device *dev = bring_of(vdev);

	bring_engine_stop(dev);
	mutex_lock(&dev->hw);
	bring_irq_disable(dev);
	mutex_unlock(&dev->hw);
	mutex_lock(&dev->state_mutex);
	bring_log_end(dev);
	bring_restart(dev, false);
	mutex_unlock(&dev->state_mutex);
}

int bring_reset(struct bring_device *dev)
{
	int ret;

	mutex_lock(&dev->state_mutex);
	ret = bring_hold(dev, false);
	if (!ret)
		bring_restart(dev, true);
	mutex_unlock(&dev->state_mutex);
	return ret;
}

static const struct vfio_device_ops bring_vfio_ops = {
	.name = "vfio-bringup",
	.init = bring_init,
	.release = bring_release_dev,
	.open_device = bring_open,
	.close_device = bring_close,
	.read = bring_read,
	.write = bring_write,
	.ioctl = bring_ioctl,
	.mmap = bring_mmap,
	.request = bring_request,
	.bind_iommufd = vfio_iommufd_emulated_bind,
	.unbind_iommufd = vfio_iommufd_emulated_unbind,
	.attach_ioas = vfio_iommufd_emulated_attach_ioas,
	.detach_ioas = vfio_iommufd_emulated_detach_ioas,
};

static int bring_probe(struct mdev_device *mdev)
{
	struct bring_device *dev;
	int ret;

	dev = vfio_alloc_device(bring_device, vdev, &mdev->dev,
				&bring_vfio_ops);
	if (IS_ERR(dev))
		return PTR_ERR(dev);
	dev_set_drvdata(&mdev->dev, dev);
	ret = vfio_register_emulated_iommu_dev(&dev->vdev);
	if (ret)
		vfio_put_device(&dev->vdev);
	return ret;
}

static void bring_remove(struct mdev_device *mdev)
{
	struct bring_device *dev = dev_get_drvdata(&mdev->dev);

	vfio_unregister_group_dev(&dev->vdev);
	vfio_put_device(&dev->vdev);
}

static struct mdev_driver bring_driver = {
	.device_api = VFIO_DEVICE_API_PCI_STRING,
	.max_instances = BRING_INSTANCES,
	.driver = {
		.name = "vfio_bringup",
		.owner = THIS_MODULE,
		.mod_name = KBUILD_MODNAME,
	},
	.probe = bring_probe,
	.remove = bring_remove,
};

static struct mdev_type bring_type = {
	.sysfs_name = "pci",
	.pretty_name = "VFIO PCI device with no hardware",
};
static struct mdev_type *bring_types[] = { &bring_type };

/* The device that all mdevs hang off; it needs no driver of its own. */
static const struct class bring_class = { .name = "vfio_bringup" };
static struct device *bring_parent_device;
static struct mdev_parent bring_parent;

static int __init bring_module_init(void)
{
	int ret = mdev_register_driver(&bring_driver);

	if (ret)
		return ret;
	ret = class_register(&bring_class);
	if (ret)
		goto driver;
	bring_parent_device = device_create(&bring_class, NULL, 0, NULL,
					    "vfio_bringup");
	ret = PTR_ERR_OR_ZERO(bring_parent_device);
	if (ret)
		goto class;
	ret = mdev_register_parent(&bring_parent, bring_parent_device,
				   &bring_driver, bring_types,
				   ARRAY_SIZE(bring_types));
	if (!ret)
		return 0;
	device_unregister(bring_parent_device);
class:
	class_unregister(&bring_class);
driver:
	mdev_unregister_driver(&bring_driver);
	return ret;
}

static void __exit bring_module_exit(void)
{
	mdev_unregister_parent(&bring_parent);
	device_unregister(bring_parent_device);
	class_unregister(&bring_class);
	mdev_unregister_driver(&bring_driver);
}

module_init(bring_module_init);
module_exit(bring_module_exit);

MODULE_LICENSE("GPL");
MODULE_AUTHOR("The Ferry authors");
MODULE_DESCRIPTION("VFIO PCI device with no hardware, for proving migration");
MODULE_IMPORT_NS(IOMMUFD);
