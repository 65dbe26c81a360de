/* SPDX-License-Identifier: GPL-2.0-only */
/* What the rules (check-*.c) share: see check.c. */
#ifndef CHECK_H
#define CHECK_H

#include "edu-user.h"

#define STATE(name) VFIO_DEVICE_STATE_##name
#define SAME(a, b) same((a), (b), #a " == " #b, __LINE__)
#define TRUE(a) same(!!(a), 1, #a, __LINE__)

extern uint8_t data[65536];

void same(unsigned long long a, unsigned long long b, const char *what, int line);
double now_ms(void);
void fill(uint8_t *at, size_t size, unsigned int seed);
/* The stopped device's whole data, into `data`; leaves it in STOP_COPY. */
size_t save(struct edu *edu);
/* Loads `size` bytes of `data` into the device; errno of a write or of leaving RESUMING. */
int load(struct edu *edu, size_t size);
void reset(struct edu *edu);
/* Moves the device's state into itself, after a reset, with interrupts armed all the time. */
void move(struct edu *edu);

void rule_log(struct edu *edu);
void rule_registers(struct edu *edu);
void rule_factorial(struct edu *edu);
void rule_intx(struct edu *edu);
void rule_msi(struct edu *edu);
void rule_command(struct edu *edu);
void rule_scratch(struct edu *edu);
void rule_scratch_full(struct edu *edu);
void rule_reset(struct edu *edu);
void rule_mark(struct edu *edu);
void rule_clean(struct edu *edu);
void rule_ranges(struct edu *edu);
void rule_precopy(struct edu *edu);
void rule_identity(struct edu *edu);
void rule_write(struct edu *edu);
void rule_other_mask(struct edu *edu);
void rule_refusals(struct edu *edu);
void rule_arcs(struct edu *edu);
void rule_bar(struct edu *edu);
void rule_stopped(struct edu *edu);

#endif
