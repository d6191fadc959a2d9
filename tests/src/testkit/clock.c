/* Shifts the wall clock of the process that it is loaded into by the seconds that a file holds. The file may change while
   the process runs. The monotonic clock stays as it is. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *now) {
  int result = (int)syscall(SYS_clock_gettime, id, now);
  const char *file = getenv("LOCKBOX_TEST_CLOCK");
  if (result != 0 || id != CLOCK_REALTIME || !file) return result;
  char text[32];
  int fd = open(file, O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
  if (fd >= 0) close(fd);
  if (length > 0) {
    text[length] = 0;
    now->tv_sec += (time_t)atoll(text);
  }
  return result;
}
