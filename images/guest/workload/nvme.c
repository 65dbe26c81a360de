/* NVMe check: reads blocks as they are, writes stamped blocks with O_DIRECT, reads them back, and counts the device's MSI-X interrupts
 * in /proc/interrupts before and after.
 *   nvme read=<crc32 of what was there> written=<crc32> back=<crc32> bytes=N ok=1
 *   msix name=nvme0q0 before=10 after=12   (one line a vector) */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "workload.h"

#define DISK "/dev/nvme0n1"
#define KIND 4
#define VECTORS 32

struct vector {
  char name[32];
  unsigned long count;
};

/* As zlib's crc32. */
static uint32_t crc32(const uint8_t *bytes, size_t length) {
  uint32_t crc = ~0u;
  while (length--) {
    crc ^= *bytes++;
    for (int i = 0; i < 8; i++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc;
}

static int read_vectors(struct vector *vectors) {
  static char text[65536];
  int count = 0;
  if (read_text("/proc/interrupts", text, sizeof text) < 0) return 0;
  for (char *line = strtok(text, "\n"); line && count < VECTORS; line = strtok(NULL, "\n")) {
    char *name = strstr(line, "nvme0q"), *at = strchr(line, ':');
    if (!name || !at) continue;
    snprintf(vectors[count].name, sizeof vectors[count].name, "%s", name);
    vectors[count].count = 0;
    for (at++;;) {
      char *end;
      unsigned long on_cpu = strtoul(at, &end, 10);
      if (end == at) break;
      vectors[count].count += on_cpu;
      at = end;
    }
    count++;
  }
  return count;
}

static int open_disk(void) {
  for (int tries = 0; tries < 500; tries++) {
    int fd = open(DISK, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd >= 0) return fd;
    sleep_us(20000);
  }
  return -1;
}

static int transfer(int fd, uint8_t *bytes, size_t length, int is_write) {
  const size_t piece = 128 << 10;
  for (size_t at = 0; at < length; at += piece) {
    size_t n = length - at < piece ? length - at : piece;
    ssize_t done = is_write ? pwrite(fd, bytes + at, n, at) : pread(fd, bytes + at, n, at);
    if (done != (ssize_t)n) {
      complain("kind=nvme text=%s at=%zu done=%zd errno=%d", is_write ? "write" : "read", at, done, errno);
      return -1;
    }
  }
  return 0;
}

void nvme_run(void) {
  struct vector before[VECTORS], after[VECTORS];
  size_t length = (size_t)options.nvme_blocks * PAGE;
  uint8_t *bytes = aligned_alloc(PAGE, length), *back = aligned_alloc(PAGE, length);
  int fd = open_disk();
  if (fd < 0 || !bytes || !back) {
    complain("kind=nvme text=no-disk");
    return;
  }
  int had = read_vectors(before);
  if (transfer(fd, bytes, length, 0) < 0) return;
  uint32_t found = crc32(bytes, length);
  for (size_t w = 0; w < length / 8; w++) ((uint64_t *)bytes)[w] = stamp(KIND, w / 512, options.seed, w % 512);
  uint32_t written = crc32(bytes, length);
  if (transfer(fd, bytes, length, 1) < 0 || fsync(fd) < 0 || transfer(fd, back, length, 0) < 0) return;
  say("nvme read=%u written=%u back=%u bytes=%zu ok=%d", found, written, crc32(back, length), length, !memcmp(bytes, back, length));
  int has = read_vectors(after);
  for (int i = 0; i < has; i++) {
    unsigned long was = 0;
    for (int k = 0; k < had; k++)
      if (!strcmp(before[k].name, after[i].name)) was = before[k].count;
    say("msix name=%s before=%lu after=%lu", after[i].name, was, after[i].count);
  }
}
