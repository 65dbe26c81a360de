/* Peer to peer: edu's DMA into the frame buffer of another passed-through device (QEMU's bochs-display, BAR 0) and out of it, past RAM.
 *   peer bar=fd000000 to=1 from=1 beside=1
 * beside: what lies around the words that were written is as it was. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "workload.h"

#define KIND 5
#define WORDS (EDU_TRANSFER / 8)
#define WINDOW (4 * PAGE)
enum { TO_PAGE = 1, FROM_PAGE = 2 };

static volatile uint64_t *frame;

static uint64_t open_frame(void) {
  char sys[300], path[400], text[64] = "";
  if (find_pci("0x1234", "0x1111", sys, sizeof sys) < 0) return 0;
  snprintf(path, sizeof path, "%s/enable", sys);
  write_text(path, "1");
  snprintf(path, sizeof path, "%s/resource", sys);
  read_text(path, text, sizeof text);
  snprintf(path, sizeof path, "%s/resource0", sys);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return 0;
  frame = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return frame == MAP_FAILED ? 0 : strtoull(text, NULL, 16);
}

static void fill(volatile uint64_t *at, unsigned words, uint64_t round) {
  for (unsigned w = 0; w < words; w++) at[w] = stamp(KIND, 0, round, w);
}

static int holds(const volatile uint64_t *at, unsigned words, uint64_t round) {
  for (unsigned w = 0; w < words; w++)
    if (at[w] != stamp(KIND, 0, round, w)) return 0;
  return 1;
}

void peer_run(void) {
  volatile uint64_t *ram;
  uint64_t ram_at, bar = open_frame();
  if (!bar || edu_open(&ram, &ram_at) < 0) {
    complain("kind=peer text=cannot-open bar=%llx", (unsigned long long)bar);
    return;
  }
  const unsigned page = PAGE / 8;
  fill(frame, WINDOW / 8, 1);
  fill(ram, WORDS, 2);
  fill(frame + FROM_PAGE * page, WORDS, 3);
  int to = edu_through(ram_at, bar + TO_PAGE * PAGE) == 0 && holds(frame + TO_PAGE * page, WORDS, 2);
  int from = edu_through(bar + FROM_PAGE * PAGE, ram_at + PAGE) == 0 && holds(ram + page, WORDS, 3);
  int beside = holds(frame, page, 1) && frame[FROM_PAGE * page - 1] == stamp(KIND, 0, 1, FROM_PAGE * page - 1);
  say("peer bar=%llx to=%d from=%d beside=%d", (unsigned long long)bar, to, from, beside);
}
