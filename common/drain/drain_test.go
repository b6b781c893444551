package drain

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestAThousandAreNotToldInTheSameInstant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, over = 1000, 2 * time.Second
		began := time.Now()
		told, at := map[int]bool{}, make([]int, 20) // at: by tenths of a second
		var order []int
		list := make([]int, n)
		for i := range list {
			list[i] = i
		}
		Spread(t.Context(), over, list, func(i int) {
			told[i] = true
			order = append(order, i)
			at[time.Since(began)/(over/20)]++
		})
		if took := time.Since(began); len(told) != n || took > over {
			t.Errorf("%d of %d are told within %s", len(told), n, took)
		}
		if slices.Min(at) < 45 || slices.Max(at) > 55 {
			t.Errorf("not even: in each tenth of a second %v", at)
		}
		if slices.IsSorted(order) {
			t.Error("the order is that of the list")
		}
	})
}

func TestSpreading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		Spread(t.Context(), time.Second, nil, func(int) { t.Error("nobody is there") })
		var told int
		Spread(t.Context(), 0, []int{1, 2, 3}, func(int) { told++ })
		if told != 3 || time.Since(began) != 0 {
			t.Errorf("without time, %d of 3 within %s", told, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		told = 0
		Spread(ctx, 10*time.Second, make([]int, 100), func(int) { told++ })
		if told < 9 || told > 11 || time.Since(began) != time.Second {
			t.Errorf("cut after %s, %d are told", time.Since(began), told)
		}
	})
}

func TestWhatRunsGoesOnUntilItIsDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		drained, stop := Before(ctx, func(ctx context.Context) {
			if ctx.Err() != nil || time.Since(began) != time.Minute {
				t.Errorf("drained after %s, %v", time.Since(began), ctx.Err())
			}
			time.Sleep(time.Second)
		})
		<-drained.Done()
		if took := time.Since(began); took != time.Minute+time.Second {
			t.Errorf("over after %s", took)
		}
		stop()
	})
	t.Run("unless something fails", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, stop := Before(t.Context(), func(context.Context) { t.Error("drained, though nobody asked to stop") })
			stop()
			ctx, cancel := context.WithCancel(t.Context())
			began := time.Now()
			drained, stop := Before(ctx, func(ctx context.Context) { <-ctx.Done() })
			cancel()
			synctest.Wait()
			if drained.Err() != nil {
				t.Error("it does not wait")
			}
			stop()
			if drained.Err() == nil || time.Since(began) != 0 {
				t.Errorf("stopped after %s: %v", time.Since(began), drained.Err())
			}
		})
	})
}
