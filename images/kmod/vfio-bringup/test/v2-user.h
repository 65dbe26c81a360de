/* SPDX-License-Identifier: GPL-2.0-only */
/* VFIO_DEVICE_FEATURE of abi d: states, the data fd, DMA logging. Functions return an errno, or 0. For rules-d.c. */
#ifndef V2_USER_H
#define V2_USER_H

#include "user.h"

#define STATE(name) VFIO_DEVICE_STATE_##name

/* *data_fd -1 if none came. */
int set_state(struct device *d, uint32_t state, int *data_fd);
uint32_t get_state(struct device *d);
uint64_t data_size(struct device *d);
/* To the end or to ENOMSG; *error is the errno that ended it (0: end of data). */
size_t read_all(int fd, uint8_t *into, size_t room, int *error);
int write_all(int fd, const uint8_t *from, size_t size, size_t piece);
int precopy_info(int fd, uint64_t *initial, uint64_t *dirty);
int log_start(struct device *d, const uint64_t *starts_and_lengths, unsigned int ranges, uint64_t *page_size);
int log_stop(struct device *d);
/* A bit a page from iova on, at most 256 pages of them: how many are set, and the first. */
int log_report(struct device *d, uint64_t iova, uint64_t length, unsigned int *count, int *first);

#endif
