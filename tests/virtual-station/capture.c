/* A Recorder for the station test: it opens the card that the Controller names and captures for ever, without alsa-lib.
   As most programs that capture, it starts the stream again after an overrun, and does not notice that no frames arrive.
   It keeps the last few MiB in capture.raw, and ends when the device is gone. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <sound/asound.h>

static volatile sig_atomic_t stopped;

static void stop(int number) {
    (void)number;
    stopped = 1;
}

static int fail(const char *what) {
    fprintf(stderr, "{\"level\":\"error\",\"event\":\"%s: %s\"}\n", what, strerror(errno));
    return 1;
}

/* The number that follows a key of the configuration. */
static unsigned number(const char *json, const char *key) {
    const char *at = json ? strstr(json, key) : NULL;
    return at ? (unsigned)strtoul(at + strlen(key) + strspn(at + strlen(key), "\": "), NULL, 10) : 0;
}

static void set_mask(struct snd_pcm_hw_params *params, int name, unsigned bit) {
    struct snd_mask *mask = &params->masks[name - SNDRV_PCM_HW_PARAM_FIRST_MASK];
    memset(mask, 0, sizeof *mask);
    mask->bits[bit / 32] = 1u << bit % 32;
}

static void set_interval(struct snd_pcm_hw_params *params, int name, unsigned min, unsigned max) {
    struct snd_interval *interval = &params->intervals[name - SNDRV_PCM_HW_PARAM_FIRST_INTERVAL];
    memset(interval, 0, sizeof *interval);
    interval->min = min;
    interval->max = max;
    interval->integer = min == max;
}

static int start(int pcm) {
    return ioctl(pcm, SNDRV_PCM_IOCTL_PREPARE) || ioctl(pcm, SNDRV_PCM_IOCTL_START);
}

int main(void) {
    const char *device = getenv("SILVASONIC_RECORDER_DEVICE"), *json = getenv("SILVASONIC_RECORDER_CONFIG_JSON");
    unsigned card, index, rate = number(json, "\"sample_rate"), channels = number(json, "\"channels");
    char path[64];
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    if (!device || sscanf(device, "hw:%u,%u", &card, &index) != 2 || !rate || !channels) {
        errno = EINVAL;
        return fail("settings");
    }
    snprintf(path, sizeof path, "/dev/snd/pcmC%uD%uc", card, index);
    int pcm = open(path, O_RDWR | O_NONBLOCK);
    if (pcm < 0)
        return fail(path);

    struct snd_pcm_hw_params params;
    memset(&params, 0, sizeof params);
    memset(params.masks, 0xff, sizeof params.masks);
    for (int name = SNDRV_PCM_HW_PARAM_FIRST_INTERVAL; name <= SNDRV_PCM_HW_PARAM_LAST_INTERVAL; name++)
        set_interval(&params, name, 0, ~0u);
    params.rmask = params.info = ~0u;
    set_mask(&params, SNDRV_PCM_HW_PARAM_ACCESS, SNDRV_PCM_ACCESS_RW_INTERLEAVED);
    set_mask(&params, SNDRV_PCM_HW_PARAM_FORMAT, SNDRV_PCM_FORMAT_S16_LE);
    set_mask(&params, SNDRV_PCM_HW_PARAM_SUBFORMAT, SNDRV_PCM_SUBFORMAT_STD);
    set_interval(&params, SNDRV_PCM_HW_PARAM_CHANNELS, channels, channels);
    set_interval(&params, SNDRV_PCM_HW_PARAM_RATE, rate, rate);
    set_interval(&params, SNDRV_PCM_HW_PARAM_PERIOD_TIME, 50000, ~0u);
    if (ioctl(pcm, SNDRV_PCM_IOCTL_HW_PARAMS, &params))
        return fail("hw_params");
    if (start(pcm))
        return fail("start");
    fprintf(stderr, "{\"level\":\"info\",\"event\":\"captures %s at %u Hz\"}\n", device, rate);

    static short samples[1 << 16];
    FILE *file = fopen("/app/workspace/capture.raw", "wb");
    struct snd_xferi transfer = {.buf = samples, .frames = sizeof samples / sizeof *samples / channels};
    while (!stopped) {
        if (!ioctl(pcm, SNDRV_PCM_IOCTL_READI_FRAMES, &transfer)) {
            if (file && ftell(file) > 8 << 20)
                rewind(file);
            if (file)
                fwrite(samples, sizeof *samples * channels, transfer.result, file);
        } else if (errno == EAGAIN) {
            usleep(20000);
        } else if (errno == ENODEV || errno == EBADFD) {
            return fail("read");
        } else {
            fail("read");
            usleep(100000);
            start(pcm);
        }
    }
    return 0;
}
