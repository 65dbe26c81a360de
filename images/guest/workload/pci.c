/* Finding a PCI device by its ids, for the threads that drive one. */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include "workload.h"

#define DEVICES "/sys/bus/pci/devices"

int find_pci(const char *vendor, const char *device, char *path, size_t size) {
  DIR *dir = opendir(DEVICES);
  struct dirent *entry;
  int found = -1;
  while (dir && found < 0 && (entry = readdir(dir))) {
    char file[400], text[16] = "", id[16] = "";
    snprintf(file, sizeof file, DEVICES "/%s/vendor", entry->d_name);
    if (read_text(file, text, sizeof text) < 0) continue;
    snprintf(file, sizeof file, DEVICES "/%s/device", entry->d_name);
    read_text(file, id, sizeof id);
    if (strncmp(text, vendor, 6) || strncmp(id, device, 6)) continue;
    snprintf(path, size, DEVICES "/%s", entry->d_name);
    found = 0;
  }
  if (dir) closedir(dir);
  return found;
}
