// SPDX-License-Identifier: GPL-2.0-only
/*
 * Moves the device's buffer to and from a page of ours, by the device's own
 * DMA. The page is mapped into the user's IOMMU domain for that long, at an
 * address that the user has not mapped. Such transfers are not the guest's:
 * they are not logged, and touch nothing of his.
 */
#include <linux/io.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/iommu.h>
#include <linux/mm.h>
#include <linux/random.h>
#include "edu.h"

#define EDU_IOVA_TRIES	64

struct edu_scratch {
	struct iommu_domain *domain;
	struct page *page;
	unsigned long iova;
};

static bool edu_iova_reserved(struct edu_device *edu, unsigned long iova)
{
	struct iommu_resv_region *region;
	LIST_HEAD(regions);
	bool reserved = false;

	iommu_get_resv_regions(&edu->core.pdev->dev, &regions);
	list_for_each_entry(region, &regions, list)
		if (iova + PAGE_SIZE > region->start &&
		    iova < region->start + region->length)
			reserved = true;
	iommu_put_resv_regions(&edu->core.pdev->dev, &regions);
	return reserved;
}

/*
 * A page that is free now, in the upper half of what both the IOMMU and the
 * device reach: users fill the address space from below. By chance, so that
 * no user can come to rely on a place. If one maps it in the next 200 ms he
 * gets an error, as for any range that is mapped already.
 */
static int edu_find_iova(struct edu_device *edu, struct edu_scratch *scratch)
{
	u64 top = min_t(u64, scratch->domain->geometry.aperture_end,
			edu_dma_mask);
	u64 pages = top >> PAGE_SHIFT;
	int i;

	if (pages < 2)
		return -ENOSPC;
	for (i = 0; i < EDU_IOVA_TRIES; i++) {
		u64 page = pages - 1 - get_random_u64() % (pages / 2);
		unsigned long iova = page << PAGE_SHIFT;

		if (iommu_iova_to_phys(scratch->domain, iova) ||
		    edu_iova_reserved(edu, iova))
			continue;
		/* A mask with holes would send the device elsewhere. */
		if ((iova & edu_dma_mask) != iova)
			continue;
		scratch->iova = iova;
		return 0;
	}
	pci_err(edu->core.pdev,
		"no free I/O address below %#llx for the device's state (module parameter dma_mask is %#lx)\n",
		top, edu_dma_mask);
	return -ENOSPC;
}

static int edu_scratch_map(struct edu_device *edu, struct edu_scratch *scratch)
{
	struct device *dev = &edu->core.pdev->dev;
	int ret;

	scratch->domain = iommu_get_domain_for_dev(dev);
	if (!scratch->domain || !(scratch->domain->type & __IOMMU_DOMAIN_PAGING))
		return -ENODEV;
	ret = edu_find_iova(edu, scratch);
	if (ret)
		return ret;
	scratch->page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!scratch->page)
		return -ENOMEM;
	ret = iommu_map(scratch->domain, scratch->iova,
			page_to_phys(scratch->page), PAGE_SIZE,
			IOMMU_READ | IOMMU_WRITE | IOMMU_CACHE,
			GFP_KERNEL_ACCOUNT);
	if (ret)
		__free_page(scratch->page);
	return ret;
}

/* @running: the device may still use the page, so it stays its page. */
static void edu_scratch_unmap(struct edu_device *edu,
			      struct edu_scratch *scratch, bool running)
{
	iommu_unmap(scratch->domain, scratch->iova, PAGE_SIZE);
	/* Behind the unmapping an access is a fault, not a corruption. */
	__free_page(scratch->page);
	if (running)
		pci_err(edu->core.pdev, "a transfer of the state hangs\n");
}

static int edu_transfer(struct edu_device *edu, struct edu_scratch *scratch,
			unsigned int at, unsigned int len, bool to_ram)
{
	u64 inner = EDU_BUF_ADDR + at;
	u64 outer = scratch->iova + at;

	writeq(to_ram ? inner : outer, edu->io + EDU_REG_DMA_SRC);
	writeq(to_ram ? outer : inner, edu->io + EDU_REG_DMA_DST);
	writeq(len, edu->io + EDU_REG_DMA_CNT);
	writel(EDU_CMD_RUN | (to_ram ? EDU_CMD_TO_RAM : 0),
	       edu->io + EDU_REG_DMA_CMD);
	return edu_hw_wait_idle(edu);
}

/* At most EDU_XFER_MAX bytes each; the rest up to the last byte if in use. */
static int edu_move(struct edu_device *edu, struct edu_scratch *scratch,
		    bool tail, bool to_ram)
{
	int ret = edu_transfer(edu, scratch, 0, EDU_XFER_MAX, to_ram);

	if (ret || !tail)
		return ret;
	return edu_transfer(edu, scratch, EDU_XFER_MAX,
			    EDU_BUF_USABLE - EDU_XFER_MAX, to_ram);
}

int edu_buffer_get(struct edu_device *edu, u8 *buf, bool tail)
{
	struct edu_scratch scratch;
	u8 mark[64];
	u8 *page;
	int ret;

	ret = edu_scratch_map(edu, &scratch);
	if (ret)
		return ret;
	page = page_address(scratch.page);
	/* A device whose write was a fault says nothing: the mark stays. */
	get_random_bytes(mark, sizeof(mark));
	memcpy(page, mark, sizeof(mark));
	ret = edu_move(edu, &scratch, tail, true);
	if (!ret && !memcmp(page, mark, sizeof(mark))) {
		pci_err(edu->core.pdev, "the device did not write its state\n");
		ret = -EIO;
	}
	if (!ret)
		memcpy(buf, page, EDU_BUF_SIZE);
	edu_scratch_unmap(edu, &scratch, ret == -ETIMEDOUT);
	return ret;
}

int edu_buffer_put(struct edu_device *edu, const u8 *buf, bool tail)
{
	struct edu_scratch scratch;
	int ret;

	ret = edu_scratch_map(edu, &scratch);
	if (ret)
		return ret;
	memcpy(page_address(scratch.page), buf, EDU_BUF_SIZE);
	ret = edu_move(edu, &scratch, tail, false);
	edu_scratch_unmap(edu, &scratch, ret == -ETIMEDOUT);
	return ret;
}
