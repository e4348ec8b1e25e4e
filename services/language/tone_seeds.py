"""Authored lines from which the tone of a sentence is learnt at first use."""

POSITIVE = """
I really like this.
This made my day.
Wonderful, well done!
What a fantastic result.
I am very happy with the purchase.
The staff were friendly and helpful.
Great work, everyone.
It exceeded my expectations.
I enjoyed every minute of it.
She is a brilliant teacher.
The soup was delicious.
Everything runs perfectly now.
I finally got the job I wanted!
We won the match!
It is easy to use and very reliable.
The colours are beautiful.
I feel much better today, thank you.
That was a hilarious film.
I love spending time with my grandparents.
Perfect, just what I needed.
The delivery came earlier than promised.
You explained it very clearly.
The baby is healthy and everyone is delighted.
Our customers are pleased with the change.
I'm excited about the trip.
Superb quality for the price.
It works again, hooray!
Thanks for your quick and kind reply.
The performance has improved a lot.
I'm grateful for your help.
This tool makes my life easier.
The view from the balcony is stunning.
He is always kind to me.
No complaints, everything was fine.
Not a single problem so far.
Best decision I ever made.
I'm relieved that it is over.
Awesome!
Good job, that looks right.
I would buy it again.
정말 마음에 들어요.
오늘 기분이 아주 좋아.
훌륭해요, 잘하셨어요!
결과가 기대 이상이에요.
직원들이 친절하고 도움이 많이 됐어요.
모두 수고하셨습니다, 멋진 결과예요.
국물이 아주 시원하고 맛있어요.
이제 완벽하게 작동합니다.
드디어 원하던 회사에 취직했어!
우리 팀이 경기에서 이겼다!
사용하기 쉽고 믿을 만해요.
색감이 아름답네요.
몸이 한결 나아졌어요, 고마워요.
영화가 정말 웃기고 재미있었어.
할머니와 보내는 시간이 행복해.
딱 제가 찾던 거예요.
예상보다 일찍 도착해서 기분 좋네요.
설명이 아주 명확했어요.
아기가 건강해서 온 가족이 기뻐해요.
여행 갈 생각에 설레요.
가격에 비해 품질이 뛰어나요.
다시 되네요, 만세!
빠르고 친절한 답변 감사드려요.
성능이 많이 좋아졌어요.
도와주셔서 감사합니다.
이 도구 덕분에 일이 편해졌어요.
창밖 경치가 환상적이에요.
그 사람은 늘 나에게 다정해.
불만 없어요, 다 괜찮았어요.
지금까지 문제가 하나도 없어요.
내 인생 최고의 선택이었어.
끝나서 정말 다행이에요.
최고다!
잘했어, 제대로 나왔네.
또 사고 싶어요.
강력히 추천합니다.
보람찬 하루였어.
네가 있어서 든든해.
사랑해요.
정말 신난다!
My brother came home safe and sound.
The doctor says I am healthy again.
We could not stop smiling.
You have no idea how much this helps.
What a relief.
Ten out of ten.
haha, that is so funny
I laughed until I cried.
I would not change a thing.
Everyone wanted a second helping.
I can't wait to see it!
It could not have gone better.
You are my hero.
They gave me a raise.
We got engaged last night!
It turned out even nicer than in the pictures.
I slept well and woke up full of energy.
She said yes!
My plants are growing and the balcony is in full bloom.
I finished my first marathon.
The children had so much fun that they asked to come again.
It saves me a lot of time every day.
Count me in!
Finally it all makes sense.
Keep up the good work.
형이 무사히 집에 돌아왔어.
의사 선생님이 다 나았다고 하셨어.
웃음이 멈추지 않았어.
만점 드려요.
ㅋㅋㅋㅋ 너무 웃겨
배꼽 잡고 웃었어.
다들 한 그릇 더 먹겠다고 했어요.
빨리 보고 싶어, 기대돼!
이보다 더 좋을 수는 없어요.
너는 나의 영웅이야.
월급이 올랐어!
우리 어제 약혼했어!
사진보다 훨씬 예뻐요.
푹 자고 일어나니 힘이 나.
화분이 쑥쑥 자라서 베란다가 꽃밭이 됐어요.
처음으로 마라톤을 완주했어.
아이들이 또 가자고 할 만큼 신나게 놀았어요.
매일 시간이 절약돼요.
드디어 이해가 됐어!
앞으로도 계속 이용할게요.
네 덕분에 힘이 난다.
"""

NEGATIVE = """
I really dislike this.
This ruined my day.
Awful, simply awful.
What a disappointing result.
I regret buying it.
The staff were unfriendly and slow.
Poor work, I expected more.
It fell far short of my expectations.
I was bored the whole time.
He is a horrible boss.
The soup tasted disgusting.
Nothing works any more.
I did not get the job.
We lost the match.
It is confusing and unreliable.
The colours are ugly.
I feel sick and tired today.
That film was dull and far too long.
I hate waiting in line.
This is not what I asked for.
The delivery was late and the box was damaged.
Your explanation was useless.
My grandfather died and I am heartbroken.
Our customers are complaining about the change.
I'm worried about the exam.
Cheap quality, it fell apart.
It stopped working again.
I never got a reply from you.
The performance has become worse.
You did not help me at all.
This tool makes everything harder.
The noise from the street is unbearable.
She always shouts at me.
I have many complaints about this place.
There are errors on every page.
Worst decision I ever made.
I'm afraid that we failed.
Annoying!
No, that is not right, you misunderstood me.
I would never buy it again.
It keeps failing and I don't know why.
I am so angry right now.
The server is down again and we are losing customers.
Stop ignoring my question.
정말 마음에 안 들어요.
오늘 기분이 아주 나빠.
끔찍해요, 정말 끔찍해요.
결과가 기대에 못 미쳐요.
직원들이 불친절하고 느렸어요.
산 걸 후회해요.
일 처리가 형편없네요.
국물이 짜고 맛없어요.
이제 아무것도 작동하지 않아요.
원하던 회사에 떨어졌어.
우리 팀이 경기에서 졌다.
사용하기 어렵고 믿을 수 없어요.
색이 촌스럽고 보기 싫어요.
몸이 아프고 너무 피곤해.
영화가 지루해서 졸았어.
줄 서서 기다리는 거 너무 싫어.
제가 부탁한 게 아니잖아요.
배송이 늦고 상자가 찌그러져서 왔어요.
설명이 전혀 도움이 안 돼요.
할아버지가 돌아가셔서 너무 슬퍼요.
고객들이 불만을 제기하고 있어요.
시험 때문에 걱정돼 죽겠어.
품질이 나빠서 금방 고장 났어요.
또 멈췄어요, 미치겠네.
답장을 한 번도 못 받았어요.
성능이 더 나빠졌어요.
전혀 도와주지 않았어요.
이 도구 때문에 일이 더 복잡해졌어요.
길거리 소음을 참을 수가 없어요.
그 사람은 나한테 늘 소리를 질러.
이곳에는 불만이 많아요.
쪽마다 오류가 있어요.
내 인생 최악의 선택이었어.
실패할까 봐 두려워요.
짜증 나!
아니, 그게 아니라고, 잘못 이해했어.
다시는 안 사요.
계속 실패하는데 이유를 모르겠어요.
지금 너무 화가 나.
서버가 또 죽어서 손님을 잃고 있어요.
추천하고 싶지 않아요.
우울하고 아무것도 하기 싫어.
억울해서 눈물이 나.
환불해 주세요, 너무 실망했어요.
Give me a refund.
I have been waiting for an hour and nobody came.
My phone does not turn on any more.
I have had enough of this.
They took the money from my account by mistake.
what the hell is wrong with this thing
She forgot my birthday.
I thought it would be much better than this.
Why is it always like this?
It was hardly worth the trip.
The line was cut off and no one called back.
Every time I try, it shows an error.
My wallet was stolen on the bus.
I had to throw it away.
I can't believe you did that to me.
They kept us waiting in the rain.
The roof leaks and nobody repairs it.
I failed my driving test.
You promised to send it and you did not.
Leave me alone.
My back hurts so much that I can't sleep.
It arrived with a crack in it.
Half of the parts were missing.
He lied to all of us.
I don't want to talk about it, I am done.
환불해 주세요.
한 시간을 기다렸는데 아무도 안 왔어요.
휴대폰이 안 켜져요.
이제 지긋지긋해.
실수로 통장에서 돈을 빼 갔어요.
도대체 이게 왜 이래?
생일을 잊어버리다니 너무해.
이것보다는 나을 줄 알았어요.
왜 항상 이런 식이야?
갈 가치가 없었어요.
전화가 끊겼는데 다시 연락도 없네요.
할 때마다 오류가 떠요.
버스에서 지갑을 도둑맞았어.
결국 버려야 했어요.
나한테 어떻게 그럴 수 있어?
비를 맞으며 한참을 기다리게 했어요.
천장에서 물이 새는데 아무도 고쳐 주지 않아요.
운전면허 시험에 또 떨어졌어.
보내 준다고 하고 안 보냈잖아요.
날 좀 내버려 둬.
허리가 아파서 잠을 못 자.
금이 간 채로 도착했어요.
부품이 절반이나 빠져 있었어요.
그 사람은 우리 모두에게 거짓말을 했어.
하나도 작동을 안 하잖아.
이젠 정말 포기하고 싶어.
"""

NEUTRAL = """
The office opens at nine.
Where is the nearest post office?
Translate this sentence into French.
The table has four legs.
Open the file and read the first line.
Iron is heavier than aluminium.
He lives in Manchester with two cats.
Write a function that adds two numbers.
How far is the moon?
The bus stops in front of the school.
I changed the title of the document.
My phone number is on the form.
What does this word mean?
The box is made of cardboard.
Create a new folder called backup.
There are seven days in a week.
I take the tram to work.
The parcel was sent on Tuesday.
Show me yesterday's sales figures.
Our company has forty employees.
Is it possible to export this as a PDF?
The recipe needs two eggs and some flour.
Please send me the agenda.
I have a meeting with Tom this afternoon.
Sort the list by date.
The book was published in 1998.
Which version of Python do you use?
Turn the page and continue.
The colour of the car is grey.
I use metric units.
Explain how a transistor works.
Make a plan for the release.
What time does the shop close?
The river flows through three countries.
I read the article and copied the link.
Can you summarise the text?
He said that he would call at noon.
The password must have eight characters.
We moved the desk next to the window.
Hello.
What did I say about the budget?
Delete the last row of the table.
The number of users is 3,400.
사무실은 아홉 시에 문을 엽니다.
가장 가까운 우체국이 어디예요?
이 문장을 프랑스어로 번역해 줘.
탁자에는 다리가 네 개 있다.
파일을 열고 첫 줄을 읽어 줘.
철은 알루미늄보다 무겁다.
그는 고양이 두 마리와 대구에 산다.
두 수를 더하는 함수를 작성해 줘.
달까지 거리가 얼마야?
버스는 학교 앞에 섭니다.
문서 제목을 바꿨습니다.
제 전화번호는 서류에 있습니다.
이 단어가 무슨 뜻이에요?
상자는 종이로 만들어졌다.
백업이라는 새 폴더를 만들어 줘.
일주일은 칠 일이다.
나는 지하철로 출근한다.
소포는 화요일에 보냈습니다.
어제 매출 자료를 보여 줘.
우리 회사 직원은 마흔 명입니다.
이걸 PDF로 내보낼 수 있나요?
이 요리에는 달걀 두 개와 밀가루가 필요합니다.
회의 안건을 보내 주세요.
오늘 오후에 민수와 회의가 있어.
목록을 날짜순으로 정렬해 줘.
그 책은 1998년에 출간되었다.
파이썬 몇 버전을 쓰고 있어?
다음 쪽으로 넘겨서 계속해 주세요.
차 색깔은 회색이다.
나는 미터법을 사용한다.
트랜지스터가 어떻게 작동하는지 설명해 줘.
출시 계획을 세워 줘.
가게는 몇 시에 닫아요?
그 강은 세 나라를 지난다.
기사를 읽고 링크를 복사했어.
이 글을 요약해 줄래?
그는 정오에 전화하겠다고 했다.
비밀번호는 여덟 글자여야 합니다.
책상을 창문 옆으로 옮겼다.
안녕하세요.
내가 예산에 대해 뭐라고 했지?
표의 마지막 행을 지워 줘.
사용자 수는 3,400명입니다.
서울은 한국의 수도이다.
점심에 김밥을 먹었어.
Is breakfast served on Sundays?
The door is painted green.
Name three animals that live in the desert.
My train arrives at 7:15 on platform two.
I usually work in the morning.
How do I reverse a string in JavaScript?
Write a short story about a lighthouse.
The course covers algebra and geometry.
She said she will be back on Monday.
We have been waiting for the invoice since May.
I took the money out of the account on Monday.
The phone call lasted ten minutes.
He forgot to mention the date of the meeting.
I need the report by Friday.
My sister is three years older than me.
일요일에도 아침 식사가 나오나요?
문은 초록색으로 칠해져 있다.
사막에 사는 동물 세 가지를 말해 줘.
제 기차는 7시 15분에 도착합니다.
나는 보통 오전에 일해.
자바스크립트에서 문자열을 뒤집는 방법을 알려 줘.
등대에 대한 짧은 이야기를 써 줘.
이 과목은 대수와 기하를 다룹니다.
그녀는 월요일에 돌아온다고 했다.
월요일에 통장에서 돈을 찾았다.
통화는 십 분 동안 이어졌다.
금요일까지 보고서가 필요합니다.
동생은 나보다 세 살 어려.
이사는 다음 주 토요일에 합니다.
"""
