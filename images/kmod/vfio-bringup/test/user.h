/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A user of vfio-bringup in user space: group, type1 container, registers, interrupts. For check.c and its rules.
 * A call that must not fail ends the program with one line.
 */
#ifndef USER_H
#define USER_H

#include <linux/vfio.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	ID = 0x00, VERSION = 0x04, MEMORY_SIZE = 0x08, SCRATCH = 0x10, SEQUENCE = 0x18, RNG = 0x20, HASH = 0x28, MUTATE = 0x30,
	VECTORS = 0x34, WINDOW = 0x38, DMA_IOVA = 0x40, DMA_MEM = 0x48, DMA_LEN = 0x50, DMA_SEED = 0x54, DMA_DELAY = 0x58,
	DMA_CMD = 0x5c, DMA_DONE = 0x60, DMA_STATUS = 0x68, DMA_ERRORS = 0x6c, DMA_PASS = 0x70, DMA_COUNT = 0x74,
	IRQ_RAISE = 0x78, IRQ_PENDING = 0x7c, IRQ_COUNT = 0x80, MEMORY = 0x8000,
	READ = 1, WRITE = 2, FILL = 3, CHECK = 4, IRQ = 0x10, PEER = 0x20, REPEAT = 0x40, BUSY = 1,
	/* Where the user's memory is in the I/O address space, and how much. */
	RAM = 0x1000000, RAM_SIZE = 1 << 20, PAGE = 4096,
};

struct device {
	int container, group, fd;
	uint64_t bar, bar2, config;
	uint8_t *ram;	/* RAM_SIZE bytes at RAM */
	int msi[4];	/* eventfds; -1: off */
};

__attribute__((format(printf, 1, 2), noreturn)) void die(const char *format, ...);
void same(unsigned long long a, unsigned long long b, const char *what, int line);
int must(int result, const char *what);
#define SAME(a, b) same((a), (b), #a " == " #b, __LINE__)
#define TRUE(a) same(!!(a), 1, #a, __LINE__)

void device_open(struct device *d, const char *group, const char *uuid);
void device_close(struct device *d);
void reset(struct device *d);
/* Size, type and subtype (0: none) of a region, and how much of it from where on may be mapped. */
struct region {
	uint64_t at, size, map_at, map_size;
	uint32_t type, subtype;
};
struct region region(struct device *d, uint32_t index);
/* The region of a type; ends the program without one. */
struct region find_region(struct device *d, uint32_t type, uint32_t subtype);

uint32_t r4(struct device *d, unsigned int reg);
uint64_t r8(struct device *d, unsigned int reg);
void w4(struct device *d, unsigned int reg, uint32_t value);
void w8(struct device *d, unsigned int reg, uint64_t value);

/* Starts a command with the RAM at `at`; mem is for READ and WRITE, seed for FILL and CHECK. */
void dma_start(struct device *d, uint32_t cmd, uint32_t at, uint32_t len, uint64_t mem_or_seed);
/* To its end; how it ended. */
uint32_t dma(struct device *d, uint32_t cmd, uint32_t at, uint32_t len, uint64_t mem_or_seed);
uint64_t pattern(uint32_t seed, uint32_t pass, uint64_t word);
bool has_pattern(const uint8_t *at, uint32_t len, uint32_t seed);

void enable_msi(struct device *d, unsigned int count);
/* Signals of an eventfd within some time. */
unsigned int signals(int eventfd, int ms);
double now_ms(void);
/* Writes a parameter of the module. */
void parameter(const char *name, const char *value);

/* type1's own tracking: how many pages are dirty in the user's RAM, and the first. */
void container_start(struct device *d);
void container_stop(struct device *d);
unsigned int container_pages(struct device *d, int *first);
unsigned int count_bits(const uint64_t *bits, unsigned int count, int *first);

#endif
