package scaler

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-run/fairway/instancepool/pooltest"
	"github.com/fairway-run/fairway/revisions"
)

func (h *host) remove(name string) {
	h.t.Helper()
	if _, err := h.Registry().Delete(name, revisions.OwnerAPI, nil); err != nil {
		h.t.Fatal(err)
	}
	synctest.Wait()
}

// F37: images of revisions that are gone go too, once; those of all others stay,
// whether requests get to them or not.
func TestPrune(t *testing.T) {
	bubble(t, func(t *testing.T, rt *pooltest.Runtime) {
		digest := func(_ context.Context, name string) (string, error) { return "sha256:" + name, nil }
		rt.Image(digest)
		h := boot(t, rt)
		synctest.Wait()
		h.create("hello")
		h.create("other")
		h.deploy("hello", "app:2")
		pruned := [][]string{{"app:1@sha256:app:1", "app:2@sha256:app:2"}}
		time.Sleep(pruneAfter)
		synctest.Wait()
		equal(t, "after the start", rt.Pruned(), pruned)
		h.deploy("hello", "app:3")
		time.Sleep(24 * time.Hour)
		equal(t, "while all is needed", rt.Pruned(), pruned)

		h.remove("hello")
		time.Sleep(pruneAfter - time.Second)
		equal(t, "a moment ago", rt.Pruned(), pruned)
		time.Sleep(time.Second)
		synctest.Wait()
		pruned = append(pruned, []string{"app:1@sha256:app:1"})
		equal(t, "without hello", rt.Pruned(), pruned)

		// What is being resolved may be what is about to be removed.
		rt.Image(func(ctx context.Context, name string) (string, error) {
			time.Sleep(5 * time.Minute)
			return digest(ctx, name)
		})
		h.create("slow", "app:4")
		h.remove("other")
		time.Sleep(4 * time.Minute)
		equal(t, "while an image is resolved", rt.Pruned(), pruned)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		pruned = append(pruned, []string{"app:4@sha256:app:4"})
		equal(t, "then", rt.Pruned(), pruned)

		rt.FailPrune(errors.New("not now"))
		h.remove("slow")
		time.Sleep(3 * pruneAfter)
		synctest.Wait()
		equal(t, "attempts", len(rt.Pruned()), len(pruned)+3)
		told := slices.DeleteFunc(h.told(""), func(kind string) bool { return kind == "removed" })
		equal(t, "told", told, []string{"prune_failed", "prune_failed", "prune_failed"})
		rt.FailPrune(nil)
		time.Sleep(time.Hour)
		equal(t, "attempts in the end", len(rt.Pruned()), len(pruned)+4)
	})
}
