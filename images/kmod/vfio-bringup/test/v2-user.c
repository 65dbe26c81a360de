// SPDX-License-Identifier: GPL-2.0-only
// See v2-user.h.
#define _GNU_SOURCE
#include "v2-user.h"
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* The feature's structure goes in and comes out at `body`. */
static int feature(struct device *d, uint32_t flags, void *body, size_t size)
{
	uint64_t bytes[32] = { 0 };
	struct vfio_device_feature *f = (void *)bytes;

	f->argsz = sizeof(*f) + size;
	f->flags = flags;
	if (size)
		memcpy(f->data, body, size);
	if (ioctl(d->fd, VFIO_DEVICE_FEATURE, f) < 0)
		return errno;
	if (size)
		memcpy(body, f->data, size);
	return 0;
}

int set_state(struct device *d, uint32_t state, int *data_fd)
{
	struct vfio_device_feature_mig_state body = { .device_state = state, .data_fd = -1 };
	int error = feature(d, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &body, sizeof(body));

	if (data_fd)
		*data_fd = error ? -1 : body.data_fd;
	else if (!error && body.data_fd >= 0)
		close(body.data_fd);
	return error;
}

uint32_t get_state(struct device *d)
{
	struct vfio_device_feature_mig_state body = { 0 };

	SAME(feature(d, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &body, sizeof(body)), 0);
	return body.device_state;
}

uint64_t data_size(struct device *d)
{
	struct vfio_device_feature_mig_data_size body = { 0 };

	SAME(feature(d, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, &body, sizeof(body)), 0);
	return body.stop_copy_length;
}

size_t read_all(int fd, uint8_t *into, size_t room, int *error)
{
	size_t size = 0;
	ssize_t got;

	while ((got = read(fd, into + size, room - size)) > 0)
		size += got;
	*error = got < 0 ? errno : 0;
	return size;
}

int write_all(int fd, const uint8_t *from, size_t size, size_t piece)
{
	while (size > 0) {
		ssize_t done = write(fd, from, size < piece ? size : piece);

		if (done < 0)
			return errno;
		from += done;
		size -= done;
	}
	return 0;
}

int precopy_info(int fd, uint64_t *initial, uint64_t *dirty)
{
	struct vfio_precopy_info info = { .argsz = sizeof(info) };

	if (ioctl(fd, VFIO_MIG_GET_PRECOPY_INFO, &info) < 0)
		return errno;
	*initial = info.initial_bytes;
	*dirty = info.dirty_bytes;
	return 0;
}

int log_start(struct device *d, const uint64_t *starts_and_lengths, unsigned int ranges, uint64_t *page_size)
{
	struct vfio_device_feature_dma_logging_control body = { .page_size = PAGE, .num_ranges = ranges,
								.ranges = (uintptr_t)starts_and_lengths };
	int error = feature(d, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START, &body, sizeof(body));

	*page_size = body.page_size;
	return error;
}

int log_stop(struct device *d)
{
	return feature(d, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, NULL, 0);
}

int log_report(struct device *d, uint64_t iova, uint64_t length, unsigned int *count, int *first)
{
	uint64_t bitmap[4] = { 0 };
	struct vfio_device_feature_dma_logging_report body = { .iova = iova, .length = length, .page_size = PAGE,
							       .bitmap = (uintptr_t)bitmap };
	int error = feature(d, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, &body, sizeof(body));

	*count = count_bits(bitmap, 256, first);
	return error;
}
